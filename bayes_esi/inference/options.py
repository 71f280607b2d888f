"""Options of methods: defaults, and checks by name."""

from ..core.checks import check_choice, check_count

__all__ = ["chain_options", "fill_options", "refuse_checkpoint"]


def fill_options(table, method, options):
    """Fill in defaults and refuse what is unknown or out of range.

    Parameters
    ----------
    table : dict of str to dict
        For each method, its options: name -> (default, check), where ``check(name, value)``
        returns the value or raises. A default of None is not checked.
    method : str
    options : dict

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        Naming the option and, if it does not exist, those that do.
    """
    known = table[method]
    for name in options:
        check_choice(f"option of {method}", name, tuple(known))
    checked = {}
    for name, (default, check) in known.items():
        value = options.get(name, default)
        checked[name] = value if value is None else check(name, value)
    return checked


def chain_options(*, n_warmup, n_samples, n_components):
    """Options of chains whose draws are mixed: two chains at least, which can disagree."""
    return {
        "n_chains": (4, lambda name, value: check_count(name, value, minimum=2)),
        "n_warmup": (n_warmup, check_count),
        "n_samples": (n_samples, lambda name, value: check_count(name, value, minimum=4)),
        "n_components": (n_components, check_count),
    }


def refuse_checkpoint(method, checkpoint):
    """Refuse a checkpoint of a method that has nothing to resume."""
    if checkpoint is not None:
        raise ValueError(f"checkpoint: {method} has nothing to resume; leave it out.")
