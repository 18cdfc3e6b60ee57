"""``python -m fastchat_serve``."""

from fastchat_serve.cli import main

raise SystemExit(main())
