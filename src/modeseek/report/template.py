"""How a page is made: a template on `base.html`, self-contained, all that a model or a person wrote escaped."""

from typing import Any

import jinja2


def filled(template: str, **known: Any) -> str:
    """The page of a template of this package; a name that it reads and is not `known` is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("modeseek.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**known)
