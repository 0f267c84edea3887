"""Publishes messages with a broker's own Python client, as producers that know nothing
of idemq do, and ends when the broker has them all.

    produce.py nats|kafka|amqp ADDRESS <messages

A line of the input is a message in JSON: to (subject, topic or queue), headers,
content_type, message_id, body. The last three and the headers may be missing.
"""

import asyncio
import json
import sys


async def produce_nats(address, messages):
    import nats

    connection = await nats.connect(address)
    js = connection.jetstream()
    for m in messages:
        headers = dict(m.get("headers", {}))
        if "content_type" in m:
            headers["content-type"] = m["content_type"]
        if "message_id" in m:
            headers["Nats-Msg-Id"] = m["message_id"]
        # The server itself drops an id that it has seen in its window: send until that
        # has passed, as a producer that is started again does.
        while True:
            ack = await js.publish(m["to"], m.get("body", "").encode(), headers=headers or None)
            if not ack.duplicate:
                break
    await connection.close()


def produce_kafka(address, messages):
    from confluent_kafka import Producer

    failed = []

    def delivered(error, _):
        if error:
            failed.append(str(error))

    producer = Producer({"bootstrap.servers": address})
    for m in messages:
        headers = [(name, value.encode()) for name, value in m.get("headers", {}).items()]
        if "content_type" in m:
            headers.append(("content-type", m["content_type"].encode()))
        producer.produce(m["to"], m.get("body", "").encode(), headers=headers, on_delivery=delivered)
    left = producer.flush(30)
    if failed or left:
        sys.exit(f"{left} messages not delivered, {failed}")


def produce_amqp(address, messages):
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(address))
    channel = connection.channel()
    channel.confirm_delivery()
    for m in messages:
        properties = pika.BasicProperties(
            headers=m.get("headers"),
            content_type=m.get("content_type"),
            message_id=m.get("message_id"),
            delivery_mode=2,
        )
        channel.basic_publish("", m["to"], m.get("body", "").encode(), properties, mandatory=True)
    connection.close()


def main():
    broker, address = sys.argv[1:]
    messages = [json.loads(line) for line in sys.stdin]
    if broker == "nats":
        asyncio.run(produce_nats(address, messages))
    elif broker == "kafka":
        produce_kafka(address, messages)
    elif broker == "amqp":
        produce_amqp(address, messages)
    else:
        sys.exit(f"no such broker: {broker}")


if __name__ == "__main__":
    main()
