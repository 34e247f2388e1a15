"""Where artifacts may be read from; checked when a directory is named and again each time it is looked at."""

from pathlib import Path

from mmserver.errors import DirectoryInvalid, OutsideRoots


def allowed_path(path_text: str, roots: tuple[Path, ...]) -> Path:
    """The real path of a directory or file that may be read.

    Raises:
        DirectoryInvalid: not an absolute path, or one that no file can have.
        OutsideRoots: symlinks resolved, it is not beneath any allowed root.
    """
    path = Path(path_text)
    if "\0" in path_text or not path.is_absolute():
        raise DirectoryInvalid(root_path=path_text, reason="give an absolute path")
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise DirectoryInvalid(root_path=path_text, reason="its symlinks cannot be followed") from error
    if roots and not any(real.is_relative_to(root.resolve()) for root in roots):
        raise OutsideRoots(path=path_text)
    return real


def artifact_root(path_text: str, roots: tuple[Path, ...]) -> Path:
    """The directory to look at: an existing one beneath an allowed root.

    Raises:
        DirectoryInvalid, OutsideRoots
    """
    real = allowed_path(path_text, roots)
    try:
        is_directory = real.is_dir()
    except OSError as error:
        raise DirectoryInvalid(root_path=path_text, reason=error.strerror or "it cannot be looked at") from error
    if not is_directory:
        raise DirectoryInvalid(root_path=path_text, reason="no such directory on the server")
    return real
