"""What the tests of the documentation share: `doc_pages.py` beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
