"""The before/after page: `python app.py [RUN|MODEL ...]` is `erase app`."""

import sys

from erase.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "app")
    main()
