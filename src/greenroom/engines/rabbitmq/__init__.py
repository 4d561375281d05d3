"""The RabbitMQ engine: messages in the queues of a broker that many programs share."""
