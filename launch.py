"""`python launch.py ...` is the command `tagpr ...`. Any Python 3 can read this file and say what is missing."""

import sys

INSTALL = "`make install` or `pip install .` installs it into an environment of Python 3.11 or 3.12"
if sys.version_info < (3, 11):
    sys.exit("error: tagpr needs Python 3.11 or 3.12, and this is %d.%d; %s" % (*sys.version_info[:2], INSTALL))
try:
    from tagpr_rl.cli import main
except ModuleNotFoundError as error:
    if str(error.name).startswith("tagpr_rl"):
        raise
    sys.exit("error: the package '%s' is not installed; %s" % (error.name, INSTALL))

if __name__ == "__main__":
    sys.exit(main())
