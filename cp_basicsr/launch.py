"""What `python -m cp_basicsr.train` and `.test` do before BasicSR's own scripts take over."""

import argparse
from pathlib import Path

import yaml

from cp_basicsr.autoload import activate


def prepare() -> None:
    """Check the option file named on the command line and import BasicSR with our types registered.

    Raises:
        SystemExit: if the option file cannot be read or is not a YAML mapping; the message names it and says why.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-opt', type=Path)
    option_file = parser.parse_known_args()[0].opt
    if option_file is not None:  # BasicSR's own parser asks for it
        check_option_file(option_file)
    activate()


def check_option_file(path: Path) -> None:
    """Stop with a message, where BasicSR would show a traceback from inside yaml, if `path` is no option file.

    Raises:
        SystemExit: if `path` cannot be read or is not a YAML mapping.
    """
    try:
        with path.open() as file:
            root = yaml.compose(file)
    except OSError as error:
        raise SystemExit(
            f'-opt {path}: {error.strerror}. Give the path of an option file; '
            f'a relative one is looked up from {Path.cwd()}.'
        ) from error
    except UnicodeDecodeError as error:
        raise SystemExit(f'-opt {path}: not a text file ({error}). Give the path of an option file (YAML).') from error
    except yaml.YAMLError as error:
        raise SystemExit(f'-opt {path}: not valid YAML.\n{error}') from error
    if not isinstance(root, yaml.MappingNode):
        raise SystemExit(f'-opt {path}: expected `key: value` lines, as in the files of options/, and found none.')
