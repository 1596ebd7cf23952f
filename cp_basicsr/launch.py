"""What `python -m cp_basicsr.train` and `.test` do before BasicSR's own scripts take over."""

import argparse
from pathlib import Path

import yaml

from cp_basicsr.autoload import activate


def prepare(description: str) -> None:
    """Check the option file named on the command line and import BasicSR with our types registered.

    Args:
        description: what ``--help`` says above BasicSR's own arguments, which are read by BasicSR afterwards.

    Raises:
        SystemExit: if the option file cannot be read or is not a YAML mapping; the message names it and says why.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('-opt', type=Path, required=True, metavar='FILE', help='option file (YAML)')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), help='what started several processes')
    parser.add_argument('--auto_resume', action='store_true', help='go on from the last training state')
    parser.add_argument('--debug', action='store_true', help='validate and log every few iterations')
    parser.add_argument('--local_rank', type=int, metavar='N', help='set by older launchers')
    parser.add_argument('--force_yml', nargs='+', metavar='KEY=VALUE', help='change options: train:ema_decay=0.999')
    check_option_file(parser.parse_known_args()[0].opt)
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
