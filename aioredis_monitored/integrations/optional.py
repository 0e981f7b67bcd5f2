"""What the integrations do when their framework is not installed."""

import re
from typing import NoReturn


def raise_missing(error: ModuleNotFoundError, requirement: str) -> NoReturn:
    """Raise an error that names the package to install, or ``error`` itself if another module is missing.

    Args:
        error: What the import raised.
        requirement: The package that the integration needs, such as ``fastapi>=0.165``.

    Raises:
        ModuleNotFoundError: Always.
    """
    [package] = re.findall(r"^\w+", requirement)
    if error.name != package:
        raise error
    message = f"this integration needs {package}, which is not installed: pip install '{requirement}'"
    raise ModuleNotFoundError(message, name=package) from error
