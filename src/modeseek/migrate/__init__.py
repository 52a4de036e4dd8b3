"""Another tool's config as ours: `translate` reads it, `render` prints it with where each line came from."""

from modeseek.migrate.read import TOOLS, translate
from modeseek.migrate.translation import Translation

__all__ = ["TOOLS", "Translation", "translate"]
