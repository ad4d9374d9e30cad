import shutil

import pandas as pd
import pytest
from PIL import Image

from interlace.errors import InputError
from interlace.evaluation import kit, prepare
from interlace.evaluation.benchmarks import BENCHMARKS
from interlace.evaluation.prepare import prepare_benchmark, read_record
from interlace.io import read_json
from tests.tiny_benchmarks import make_tiny_benchmarks, take_for_long


@pytest.fixture
def source(tmp_path):
    return make_tiny_benchmarks(tmp_path / "tsv", datasets=("AI2D_TEST", "MMBench_DEV_EN_V11"))


def change(source, dataset, edit):
    path = source / f"{dataset}.tsv"
    table = pd.read_csv(path, sep="\t")
    edit(table).to_csv(path, sep="\t", index=False)


def test_images_lie_there_and_the_tsv_is_a_fixture(source, tmp_path):
    root = tmp_path / "lmu"
    prepare_benchmark("MMBench_DEV_EN_V11", root, str(source))
    record = read_json(root / "MMBench_DEV_EN_V11.json")
    assert (record["rows"], record["official"], record["fixture"]) == (8, False, True)
    images = sorted((root / "images" / "MMBench_V11").glob("*.png"))
    assert len(images) == 8  # rotations refer to the first one's picture and get a file each
    with Image.open(images[0]) as image:
        assert image.size == (64, 64)
    assert read_record("MMBench_DEV_EN_V11", root) == record


def test_official_means_the_md5_that_vlmeval_pins(source, tmp_path, monkeypatch):
    md5 = prepare._md5(source / "AI2D_TEST.tsv")
    monkeypatch.setattr(prepare.kit, "official_md5", lambda dataset: md5)
    prepare_benchmark("AI2D_TEST", tmp_path / "lmu", str(source))
    record = read_json(tmp_path / "lmu" / "AI2D_TEST.json")
    assert (record["official"], record["fixture"]) == (True, False)


def test_a_changed_tsv_gets_new_images_and_an_unchanged_one_is_left_alone(source, tmp_path):
    root = tmp_path / "lmu"
    prepare_benchmark("AI2D_TEST", root, str(source))
    image = root / "images" / "AI2D_TEST" / "0.png"
    before = image.read_bytes()
    image.write_bytes(b"")
    prepare_benchmark("AI2D_TEST", root, str(source))
    assert image.read_bytes() == b""
    assert read_json(root / "AI2D_TEST.json")["images"] == {"folder": "AI2D_TEST", "files": 2}
    change(source, "AI2D_TEST", lambda t: t.assign(image=list(t["image"][::-1])))
    prepare_benchmark("AI2D_TEST", root, str(source))
    assert len(image.read_bytes()) > 0
    assert image.read_bytes() != before


def test_a_tsv_changed_behind_our_back_is_refused(source, tmp_path):
    root = tmp_path / "lmu"
    with pytest.raises(InputError, match=r"AI2D_TEST\.json: no such file; prepare"):
        read_record("AI2D_TEST", root)
    prepare_benchmark("AI2D_TEST", root, str(source))
    with (root / "AI2D_TEST.tsv").open("a") as handle:
        handle.write("\n")
    with pytest.raises(InputError, match=r"AI2D_TEST\.tsv: missing or changed"):
        read_record("AI2D_TEST", root)


def test_a_table_above_a_gigabyte_that_was_moved_is_prepared_again(source, tmp_path, monkeypatch):
    take_for_long(monkeypatch)
    root = tmp_path / "lmu"
    prepare_benchmark("AI2D_TEST", root, str(source))
    assert read_record("AI2D_TEST", root)["root"] == str(root.resolve())
    moved = root.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"images are missing, or were moved, .* prepare it again"):
        read_record("AI2D_TEST", moved)
    prepare_benchmark("AI2D_TEST", moved, str(source))
    read_record("AI2D_TEST", moved)
    assert str(moved) in (moved / "AI2D_TEST_local.tsv").read_text()
    (moved / "AI2D_TEST_local.tsv").unlink()
    with pytest.raises(InputError, match="prepare it again"):
        read_record("AI2D_TEST", moved)


@pytest.mark.parametrize(
    ("dataset", "edit", "line"),
    [
        ("AI2D_TEST", lambda t: t.assign(split=["val", "dev"]), "row 3: column split is 'dev'"),
        ("AI2D_TEST", lambda t: t.assign(split=["", ""]), "row 2: column split is ''"),
        (
            "MMBench_DEV_EN_V11",
            lambda t: t.assign(index=[*t["index"][:7].astype(str), "x1"]),
            "row 9: index x1 is no whole number",
        ),
        (
            "MMBench_DEV_EN_V11",
            lambda t: t.assign(index=t["index"].replace(1, 7), image=t["image"].replace("1", "7")),
            "row 7: index 1000001 is a rotation of question 1, which is missing",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused_before_anything_is_generated(
    dataset, edit, line, source, tmp_path
):
    change(source, dataset, edit)
    with pytest.raises(InputError, match=rf"{dataset}\.tsv: {line}"):
        prepare_benchmark(dataset, tmp_path / "lmu", str(source))
    assert not (tmp_path / "lmu" / f"{dataset}.json").exists()


def test_an_edit_in_place_does_not_reach_what_is_scored(source, tmp_path):
    root, given = tmp_path / "lmu", source / "AI2D_TEST.tsv"
    prepare_benchmark("AI2D_TEST", root, str(source))
    assert not given.samefile(root / "AI2D_TEST.tsv")
    stamp = (root / "AI2D_TEST.tsv").stat().st_mtime_ns
    prepare_benchmark("AI2D_TEST", root, str(source))
    assert (root / "AI2D_TEST.tsv").stat().st_mtime_ns == stamp  # not copied again
    with given.open("a") as handle:
        handle.write("\n")
    read_record("AI2D_TEST", root)
    # A link that is there already is replaced.
    given.unlink()
    given.hardlink_to(root / "AI2D_TEST.tsv")
    prepare_benchmark("AI2D_TEST", root, str(source))
    assert not given.samefile(root / "AI2D_TEST.tsv")


def test_images_that_are_gone_are_told_and_made_again(source, tmp_path):
    root = tmp_path / "lmu"
    prepare_benchmark("AI2D_TEST", root, str(source))
    images = root / "images" / "AI2D_TEST"
    names = {file.name for file in images.iterdir()}
    for damage in (lambda: shutil.rmtree(images), (images / "1.png").unlink):
        damage()
        with pytest.raises(InputError, match=r"images.AI2D_TEST: images are missing, .*\.json"):
            read_record("AI2D_TEST", root)
        prepare_benchmark("AI2D_TEST", root, str(source))
        assert {file.name for file in images.iterdir()} == names
        read_record("AI2D_TEST", root)


@pytest.mark.parametrize(
    ("indices", "line"),
    [
        (["1", "01"], "row 3: index 1 stands in more than one row .row 2 too"),
        (["x", "x"], "row 3: index x stands in more than one row .row 2 too"),
        (["3", ""], "row 3: the index is empty"),
        (["NA", "3"], "row 2: the index is empty"),
        (["1.5", "2.5"], "row 2: index '1.5' is a number that VLMEvalKit writes otherwise"),
        (["1.0", "2.0"], "row 2: index '1.0' is a number"),
        (["1", "1e3"], "row 3: index '1e3' is a number"),
        (["1", "007"], "row 3: index '007' is a number"),
        ([" 1", "x"], "row 2: index ' 1' is a number"),
        (["x", "../../../evil"], r"row 3: index '\.\./\.\./\.\./evil' leads out of the folder"),
        (["/tmp/evil", "x"], "row 2: index '/tmp/evil' leads out of the folder"),
        (["3", "3.0"], "row 3: index 3.0 stands in more than one row .row 2 too"),
    ],
)
def test_an_index_that_vlmeval_reads_as_another_is_refused(indices, line, source, tmp_path):
    path = source / "AI2D_TEST.tsv"
    table = pd.read_csv(path, sep="\t", dtype=str)
    table.assign(index=indices).to_csv(path, sep="\t", index=False)
    with pytest.raises(InputError, match=rf"AI2D_TEST\.tsv: {line}"):
        prepare_benchmark("AI2D_TEST", tmp_path / "lmu", str(source))
    assert not (tmp_path / "lmu" / "AI2D_TEST.json").exists()
    assert not list((tmp_path / "lmu").rglob("evil*"))


def test_a_picture_is_not_written_elsewhere(source, tmp_path):
    change(source, "AI2D_TEST", lambda t: t.assign(image_path=["0.png", "../../../evil.png"]))
    with pytest.raises(InputError, match=r"row 3: image_path '\.\./.*' leads out of the folder"):
        prepare_benchmark("AI2D_TEST", tmp_path / "lmu", str(source))


def test_names_and_negative_numbers_may_be_indices(source, tmp_path):
    path = source / "AI2D_TEST.tsv"
    for indices in (["a..b", "c:d"], ["-1", "0"]):
        table = pd.read_csv(path, sep="\t", dtype=str)
        table.assign(index=indices).to_csv(path, sep="\t", index=False)
        prepare_benchmark("AI2D_TEST", tmp_path / "lmu", str(source))


def test_a_limit_keeps_rotations_of_one_question_together():
    data = pd.DataFrame({"question": list("aabbaabb"), "image": list("pppqppqq")})
    for name in ("HRBench4K", "HRBench8K"):
        for limit, kept in ((1, [0, 1, 4, 5]), (4, [0, 1, 4, 5]), (5, [0, 1, 2, 4, 5])):
            assert list(kit.limited(data, BENCHMARKS[name], limit).index) == kept
    assert len(kit.limited(data, BENCHMARKS["AI2D"], 3)) == 3


def test_mistakes_are_named(source, tmp_path):
    root = tmp_path / "lmu"
    with pytest.raises(InputError, match=r"POPE\.tsv: no such file; put the benchmark's TSV there"):
        prepare_benchmark("POPE", root, str(source))
    with pytest.raises(InputError, match=r"POPE\.tsv: no such file; the demo writes it"):
        prepare_benchmark("POPE", root, "demo")
    change(source, "AI2D_TEST", lambda t: t.drop(columns=["A", "answer"]))
    with pytest.raises(InputError, match=r"AI2D_TEST\.tsv: column answer, A is missing"):
        prepare_benchmark("AI2D_TEST", root, str(source))
    change(source, "MMBench_DEV_EN_V11", lambda t: t.assign(index=7))
    with pytest.raises(InputError, match="index 7 stands in more than one row"):
        prepare_benchmark("MMBench_DEV_EN_V11", root, str(source))
    (source / "POPE.tsv").write_bytes(b"")
    with pytest.raises(InputError, match=r"POPE\.tsv: not a table"):
        prepare_benchmark("POPE", root, str(source))
    assert not list(root.glob("*.json"))


@pytest.mark.parametrize("gigabytes", [0, 2])
@pytest.mark.parametrize("damage", ["truncate", "no picture"])
def test_an_image_that_does_not_decode_names_its_row(
    damage, gigabytes, source, tmp_path, monkeypatch
):
    if gigabytes:
        take_for_long(monkeypatch)

    def edit(table):
        image = table.loc[1, "image"]
        table.loc[1, "image"] = (
            image[: len(image) // 8 * 4] if damage == "truncate" else "abcd" * 30
        )
        return table

    change(source, "AI2D_TEST", edit)
    with pytest.raises(InputError, match=r"AI2D_TEST\.tsv: row 3: the image of index 1 does not"):
        prepare_benchmark("AI2D_TEST", tmp_path / "lmu", str(source))
    assert not (tmp_path / "lmu" / "AI2D_TEST.json").exists()


def test_an_official_tsv_is_downloaded_and_held_to_its_md5(source, tmp_path, monkeypatch):
    smp, given = prepare.kit.load_vlmeval().smp, source / "AI2D_TEST.tsv"
    root = tmp_path / "lmu"

    def no_network(url, file):
        raise Exception(f"Failed to download {url}")  # what vlmeval raises

    monkeypatch.setattr(smp, "download_file", no_network)
    with pytest.raises(InputError, match=r"could not be downloaded .*AI2D_TEST\.tsv elsewhere"):
        prepare_benchmark("AI2D_TEST", root, "official")
    monkeypatch.setattr(smp, "download_file", lambda url, file: shutil.copyfile(given, file))
    with pytest.raises(InputError, match="the download is not the official file"):
        prepare_benchmark("AI2D_TEST", root, "official")
    assert not (root / "AI2D_TEST.tsv").exists()
    monkeypatch.setattr(prepare.kit, "official_md5", lambda dataset: prepare._md5(given))
    prepare_benchmark("AI2D_TEST", root, "official")
    assert read_json(root / "AI2D_TEST.json")["official"] is True
    monkeypatch.setattr(smp, "download_file", no_network)
    prepare_benchmark("AI2D_TEST", root, "official")  # it is there: nothing to fetch


def test_a_fixture_does_not_pass_for_the_official_tsv(source, tmp_path, monkeypatch):
    root, fetched = tmp_path / "lmu", []
    prepare_benchmark("AI2D_TEST", root, str(source))
    smp = prepare.kit.load_vlmeval().smp
    monkeypatch.setattr(smp, "download_file", lambda url, file: fetched.append(url) or 1 / 0)
    with pytest.raises(InputError, match="could not be downloaded"):
        prepare_benchmark("AI2D_TEST", root, "official")
    assert len(fetched) == 1
