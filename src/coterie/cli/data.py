"""`coterie data`: what is wrong with images, before training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.cli.options import Plugins, Settings

if TYPE_CHECKING:
    from coterie.data.findings import DataCheck

FOUND = 1
"""Exit status when something was found that asks to be mended."""


def check_images(
    what: str,
    *settings: Settings,
    workers: int = 2,
    json: Path | None = None,
    plugin: Plugins = (),
) -> int:
    """Decode all images and name those that are damaged, doubled, in two classes, or leak from the test into training.

    One line for each kind of fault; the exit status is 1 when there is one, 0 when there is none.

    Parameters
    ----------
    what
        A folder with train and val or test, or with a folder of images per class; or a recipe, for its data set.
    settings
        Of a recipe, knobs that differ from it, such as data.root=DIR.
    workers
        Processes that decode when there are thousands of files.
    json
        File to write all names to; the lines have the first few.
    plugin
        Python file that registers a data set; may be repeated.
    """
    from coterie.core.files import write_json_atomically

    _check_options(workers, json)
    found = _checked(what, settings, workers, plugin)
    _print(found)
    if json is not None:
        write_json_atomically(json, found.as_json())
    return 0 if found.is_clean else FOUND


def _check_options(workers: int, json: Path | None) -> None:
    from coterie.core.errors import ConfigError

    if workers < 0:
        raise ConfigError(f"--workers is {workers}; give 0 or more")
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise ConfigError(f"--json {str(json)!r} cannot be written; give a file in a folder that exists")


def _checked(what: str, settings: Sequence[str], workers: int, plugins: Sequence[Path]) -> DataCheck:
    from dataclasses import replace

    from coterie.cli.options import open_recipe
    from coterie.data.checkup import check_data, check_folder

    if Path(what).is_dir() and not settings:
        return check_folder(Path(what), workers)
    recipe = open_recipe(what, settings, plugins)
    return check_data(replace(recipe.data, workers=workers), recipe.seed)


def _print(found: DataCheck) -> None:
    counts = ", ".join(f"{part or 'images'} {count}" for part, count in found.counts.items())
    print(f"checked {sum(found.counts.values())} images of {found.classes} classes: {counts}")
    for finding in found.findings:
        print(finding.line() if finding.is_fault else f"note: {finding.line()}")
    if found.is_clean:
        print("nothing to mend")
