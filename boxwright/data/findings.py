"""What a check finds: one kind of thing each, and the report of all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import DataError

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found in one split.

    Args:
        severity: "error" (training would fail or learn wrong things), "warning" or "info".
        code: short name of the kind, such as "image_missing".
        message: what is wrong.
        file: the first file that it concerns.
        record: the record in it, and further examples.
        remedy: how to mend it.
        count: how many records it concerns.
        split: the split; empty where it concerns several.
    """

    severity: str
    code: str
    message: str
    file: str = ""
    record: str = ""
    remedy: str = ""
    count: int = 1
    split: str = ""

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.split, self.file, self.record) if part)
        return f"{self.severity}: {self.code} x {self.count}: {self.message} [{where}] {self.remedy}".rstrip()


@dataclass(frozen=True)
class CheckReport:
    """All findings, the gravest first. `rich.print(report)` shows a table."""

    root: str
    findings: tuple[Finding, ...]
    images: int
    objects: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that forbid training."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def count(self, severity: str) -> int:
        """Number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def raise_for_errors(self) -> None:
        """Raise a DataError that lists the errors, if there are any."""
        if self.errors:
            lines = "\n".join(f"  {finding}" for finding in self.errors[:20])
            raise DataError(f"{self.root}: the data set cannot be used as it is:\n{lines}")

    def __str__(self) -> str:
        return "\n".join([self._summary(), *(str(finding) for finding in self.findings)])

    def _summary(self) -> str:
        counts = ", ".join(f"{self.count(s)} {s}{'' if s == 'info' else 's'}" for s in SEVERITIES)
        return f"{self.root}: {self.images} images, {self.objects} objects; {counts}"

    def __rich__(self) -> Any:
        from rich.text import Text

        colours = {"error": "bold red", "warning": "bold yellow", "info": "bold"}
        report = Text(self._summary() + "\n")
        for f in self.findings:
            split = f" in {f.split}" if f.split else ""
            report.append(f"\n{f.severity} ", colours[f.severity])
            report.append(f"{f.code}{split} x {f.count}: {f.message}\n")
            where = ": ".join(part for part in (f.file, f.record) if part)
            report.append(f"  at: {where}\n" if where else "", "dim")
            report.append(f"  remedy: {f.remedy}\n" if f.remedy else "")
        return report
