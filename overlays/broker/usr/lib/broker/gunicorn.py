"""gunicorn's settings, which it reads anew at a reload: the environment, as the agent
tells it (docs/payload.md, "What the product is told"), or as it is on a node that stands
alone."""

import re
from pathlib import Path

_TOLD = Path("/etc/slipway/product/env")
# systemd.exec(5), EnvironmentFile=, as the agent writes it.
_LINE = re.compile(r'(\w+)="(.*)"')


def _variables(text):
    for line in text.splitlines():
        if found := _LINE.fullmatch(line):
            yield found[1] + "=" + re.sub(r"\\(.)", r"\1", found[2])


raw_env = list(_variables(_TOLD.read_text())) if _TOLD.exists() else []
