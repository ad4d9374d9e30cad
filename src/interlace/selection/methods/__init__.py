"""One file per method of choosing layers; each has a function `choose(request) -> Choice`."""
