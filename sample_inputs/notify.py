"""Have Prefect's server call a web address whenever a job ends: `python notify.py https://hooks.example.com/…`.

It makes a webhook block and one automation, both called "audiobatch", or brings them up to date, on the server that
PREFECT_API_URL names. What is sent is JSON with one line of text, as chat tools take it; see `BODY`.

The states of a job's flow run, of which `EVENTS` names those that call:

    Completed   all done, or finished with some rows failed (the tag `partial`)
    Failed      stopped: settings, credentials, a cost or failure limit
    Parked      stopped by a long rate limit, an outage or --stop-at; the next run goes on
    Crashed     its process died
    Cancelled   stopped by somebody, in order
    Skipped     not run: the last one was still at work, or there was nothing yet
"""

import contextlib
import sys

from prefect.automations import Automation
from prefect.blocks.webhook import Webhook
from prefect.events import EventTrigger, Posture
from prefect.events.actions import CallWebhook

NAME = "audiobatch"
EVENTS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Parked", "Crashed")}
FLOWS = ["process-folder", "speak-prompts"]
BODY = '{"text": {{ [flow_run.name, flow_run.state.name, flow_run.state.message] | join(": ") | tojson }}}'


def main(address: str) -> None:
    webhook = Webhook(method="POST", url=address)
    block_id = webhook.save(NAME, overwrite=True)
    with contextlib.suppress(ValueError):  # the first time there is none
        Automation.read(name=NAME).delete()
    Automation(
        name=NAME,
        trigger=EventTrigger(
            expect=EVENTS,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[CallWebhook(block_document_id=block_id, payload=BODY)],
    ).create()
    print(f"{', '.join(sorted(EVENTS))} call the address of the webhook block {NAME!r}.")


if __name__ == "__main__":
    main(sys.argv[1])
