"""What a project's user does with nothing but a NATS client: commands, queries, events, and catching up after a gap.

README.md shows this program; the tests run it. `claim` claims a host; once an operator has proven the claim, `serve`
uploads a certificate, waits until the edge serves it, and lists what happened.
"""

import argparse
import asyncio
import json
import subprocess
import uuid

import nats


class Project:
    """One project, as its user sees it: `chancery.v1.{cmd,query,evt}.<project>.…`."""

    def __init__(self, nc, project):
        self.nc, self.project = nc, project
        self.last = 0  # the projectseq of the last event that we have handled

    async def command(self, name, body, id=None):
        """Gives a command. Whoever gets no answer sends the same id again: nothing happens twice."""
        headers = {"Nats-Msg-Id": str(id or uuid.uuid4())}
        subject = f"chancery.v1.cmd.{self.project}.{name}"
        for attempt in range(8):
            try:
                message = await self.nc.request(subject, json.dumps(body).encode(), timeout=5, headers=headers)
            except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
                await asyncio.sleep(0.5)
                continue
            answer = json.loads(message.data)
            if "code" not in answer:
                return answer  # {"id", "outcome": "accepted", "sequence", …}
            if "retry_after_ms" not in answer:
                raise RuntimeError(f"{answer['code']}: {answer['detail']}")
            await asyncio.sleep(answer["retry_after_ms"] / 1000)
        raise TimeoutError(f"no answer to {name}; ask again with the id {headers['Nats-Msg-Id']}")

    async def query(self, view, **body):
        message = await self.nc.request(f"chancery.v1.query.{self.project}.{view}", json.dumps(body).encode(), timeout=5)
        answer = json.loads(message.data)
        if "code" in answer:
            raise RuntimeError(f"{answer['code']}: {answer['detail']}")
        return answer

    async def follow(self, handle):
        """Follows the project's events. Their `projectseq` has no gaps, so a gap shows that something was missed."""

        async def arrived(message):
            event = json.loads(message.data)
            if int(event["projectseq"]) == self.last + 1:
                self.last += 1
                handle(event)
            elif int(event["projectseq"]) > self.last:
                await self.catch_up(handle)

        subscription = await self.nc.subscribe(f"chancery.v1.evt.{self.project}.>", cb=arrived)
        await self.nc.flush()
        await self.catch_up(handle)
        return subscription

    async def catch_up(self, handle):
        """Asks for all events after the last one, page by page; gives how many there were."""
        count = 0
        while True:
            page = await self.query("events", **{"from": self.last + 1})
            for event in page["events"]:
                if int(event["projectseq"]) == self.last + 1:
                    self.last += 1
                    count += 1
                    handle(event)
            if self.last >= page["head"]:
                return count


def sealed(arguments):
    """The private key, sealed to the ingestion key: it never travels in the clear."""
    command = [arguments.chancery, "seal", "--key", arguments.key, "--json", "--server", arguments.server]
    command += ["--creds", arguments.creds, "--project", arguments.project]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def told(event):
    kind = event["type"].removeprefix("dev.chancery.").removesuffix(".v1")
    print(f"event {event['projectseq']:>3}  {kind:<24} by {event['actor']}")


async def main(arguments):
    nc = await nats.connect(arguments.server, user_credentials=arguments.creds)
    project = Project(nc, arguments.project)
    # The same id for the same step of the same host: the program can be run again.
    step_id = lambda step: uuid.uuid5(uuid.NAMESPACE_DNS, f"{step}.{arguments.host}")

    if arguments.step == "claim":
        await project.command("domain.add", {"host": arguments.host, "resource": arguments.resource}, step_id("claim"))
        [domain] = (await project.query("domains", name=arguments.host))["domains"]
        print(f"{arguments.host} is {domain['status']}: an operator proves it now")
    else:
        subscription = await project.follow(told)
        with open(arguments.chain) as file:
            chain = file.read()
        body = {"name": arguments.certificate, "chain": chain, "key": sealed(arguments), "regions": [arguments.region]}
        await project.command("certificate.add", body, step_id("add"))
        while True:
            [region] = (await project.query("host", host=arguments.host, region=arguments.region))["regions"]
            edges, active = region["edges"], region["active"]
            if active and edges["of"] > 0 and not edges["behind"]:
                break
            await asyncio.sleep(0.1)
        print(f"{arguments.host} is active: {active['certificate']}, until {active['not_after']}")

        # While nobody listens, something happens; it is not lost.
        await subscription.unsubscribe()
        await project.command("domain.bind", {"host": arguments.host, "certificate": arguments.certificate})
        await project.command("domain.unbind", {"host": arguments.host})
        count = await project.catch_up(told)
        print(f"caught up with {count} events, the last is {project.last}")
    await nc.drain()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ["server", "creds", "project", "host", "resource", "region", "certificate", "chain", "key"]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--chancery", default="chancery", help="the binary, for sealing the key")
    parser.add_argument("step", choices=["claim", "serve"])
    asyncio.run(main(parser.parse_args()))
