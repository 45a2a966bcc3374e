"""How the annotations of fastrcnn are checked at each call when the tests run; pyproject.toml names it to pytest."""

import typing

from beartype import BeartypeConf, beartype
from pydantic_core import core_schema

for _info in (core_schema.ValidationInfo, core_schema.SerializationInfo):
    typing.runtime_checkable(_info)  # protocols; isinstance asks for it

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int does where a float is declared
