"""Where a build's results lie below its output folder: plain data that every room may know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """The output folder of one target (`--out`, by default `.envbuilder/<target>`)."""

    out: Path

    @classmethod
    def of(cls, out: str | Path) -> Layout:
        return cls(Path(out).absolute())

    def environment(self, name: str) -> Path:
        return self.out / "envs" / name

    def python(self, name: str) -> Path:
        return self.environment(name) / "bin" / "python"

    def log(self, name: str) -> Path:
        return self.out / "logs" / f"{name}.log"

    @property
    def manifest(self) -> Path:
        return self.out / "manifest.json"

    @property
    def smoke(self) -> Path:
        return self.out / "smoke.json"

    @property
    def canary(self) -> Path:
        """The smoke test's tiny model, as it was made (`base`) and quantized (`quantized`)."""
        return self.out / "canary"

    @property
    def stages(self) -> Path:
        """Records of finished stages: what makes a second build do nothing."""
        return self.out / ".stages"

    @property
    def scratch(self) -> Path:
        """Work in progress; whatever is found here at the start of a build was left by one that was killed."""
        return self.out / ".scratch"
