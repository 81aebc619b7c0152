"""Journals: the slopes of a run in a file, from which `replay` repeats the run."""

from radazo.journal.file import Journal, open_journal, read_journal
from radazo.journal.file_format import JournalContents, JournalEntry, JournalHeader
from radazo.journal.replaying import recorded_step, replay

__all__ = ["Journal", "JournalContents", "JournalEntry", "JournalHeader"]
__all__ += ["open_journal", "read_journal", "recorded_step", "replay"]
