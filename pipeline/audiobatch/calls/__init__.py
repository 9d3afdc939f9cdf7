"""One item: its turns asked, their ends recorded."""
