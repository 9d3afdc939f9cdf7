"""How the workbook looks: fonts, number formats, and the colours of the words that a reviewer looks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.reports.columns import Kind

if TYPE_CHECKING:
    import xlsxwriter

#: Background and ink of the words that a reviewer looks for; dark ink on pale ground, readable in print.
_COLOURS = {
    "status": {
        "succeeded": ("#E3F4E8", "#14532D"),
        "failed": ("#FBE2E2", "#7F1D1D"),
        "refused": ("#FDEBD3", "#7C2D12"),
        "unknown": ("#EEE6FB", "#4C1D95"),
        "pending": ("#ECEEF1", "#374151"),
    },
    "review": {
        "ok": ("#E3F4E8", "#14532D"),
        "redo": ("#FFF3C4", "#713F12"),
        "reject": ("#FBE2E2", "#7F1D1D"),
    },
}


class Formats:
    """The cell formats of a workbook, each made once."""

    def __init__(self, book: xlsxwriter.Workbook) -> None:
        top = {"valign": "top", "font_name": "Calibri", "font_size": 11}
        head = {"bold": True, "bg_color": "#1F2937", "font_color": "#FFFFFF", "valign": "vcenter"}
        self.header = book.add_format(head)
        self.number_header = book.add_format({**head, "align": "right", "indent": 1})
        self.text = book.add_format({**top, "num_format": "@"})
        self.quoted = book.add_format({**top, "num_format": "@", "quote_prefix": True})
        self.wrapped = book.add_format({**top, "num_format": "@", "text_wrap": True})
        self.wrapped_quoted = book.add_format(
            {**top, "num_format": "@", "text_wrap": True, "quote_prefix": True}
        )
        self.link = book.add_format({**top, "font_color": "#0B5CAD", "underline": 1})
        self.wrapped_link = book.add_format(
            {**top, "font_color": "#0B5CAD", "underline": 1, "text_wrap": True}
        )
        self.number = book.add_format(top)
        right = {**top, "align": "right", "indent": 1}
        self.by_kind = {
            Kind.COUNT: book.add_format({**right, "num_format": "#,##0"}),
            Kind.SECONDS: book.add_format({**right, "num_format": "#,##0.00"}),
            Kind.RATIO: book.add_format({**right, "num_format": "0.000"}),
            Kind.MONEY: book.add_format({**right, "num_format": "#,##0.000000"}),
        }
        self.time = book.add_format({**top, "num_format": "yyyy-mm-dd hh:mm:ss"})
        self.words = {
            column: {
                word: book.add_format({"bg_color": ground, "font_color": ink})
                for word, (ground, ink) in words.items()
            }
            for column, words in _COLOURS.items()
        }
