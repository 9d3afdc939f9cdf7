"""audiobatch, the library: folders of recordings or text prompts in; spoken replies and a manifest out.

The work goes down once: `discover → plan → execute [limits → transports] → store → reports`.
A Source becomes an Item, an Item's Turn a Request, a Request a Reply, a Reply an Outcome, an Outcome a
manifest row. Nothing in this package knows of Prefect; the flows do, and call `pipeline.execute`.
"""
