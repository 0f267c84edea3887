import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicIntegerArray;

import com.sun.management.OperatingSystemMXBean;
import org.apache.camel.builder.RouteBuilder;
import org.apache.camel.component.redis.processor.idempotent.SpringRedisStringIdempotentRepository;
import org.apache.camel.impl.DefaultCamelContext;
import org.springframework.data.redis.connection.RedisStandaloneConfiguration;
import org.springframework.data.redis.connection.jedis.JedisConnectionFactory;
import org.springframework.data.redis.core.StringRedisTemplate;

/**
 * A route from Kafka through Camel's idempotent consumer, with its repository in Redis.
 *
 * <p>Arguments: broker, topic, group, host and port of Redis, messages, tokens, consumers. It consumes the
 * topic once in another group, to warm up, prints "warm" and waits for a line. Then it consumes
 * the topic again and prints "first" at the first message, "handled" and the CPU seconds between
 * when every token has had its effect, and "effects" with a digit for each token when all
 * messages are through. It ends when its input does.
 */
public final class IdempotentRoute {
    private final String broker;
    private final String topic;
    private final int messages;
    private final int tokens;
    private final int consumers;
    private final StringRedisTemplate redis;

    private IdempotentRoute(String[] args) {
        broker = args[0];
        topic = args[1];
        messages = Integer.parseInt(args[5]);
        tokens = Integer.parseInt(args[6]);
        consumers = Integer.parseInt(args[7]);
        var connections = new JedisConnectionFactory(new RedisStandaloneConfiguration(args[3], Integer.parseInt(args[4])));
        connections.afterPropertiesSet();
        connections.start();
        redis = new StringRedisTemplate(connections);
    }

    public static void main(String[] args) throws Exception {
        var route = new IdempotentRoute(args);
        var in = new BufferedReader(new InputStreamReader(System.in));
        route.consume(args[2] + "-warm", false).close();
        say("warm");
        in.readLine();
        var context = route.consume(args[2], true);
        in.readLine();
        context.close();
        System.exit(0);
    }

    /** Returns when all messages are through. */
    private DefaultCamelContext consume(String group, boolean measured) throws Exception {
        var seen = new SpringRedisStringIdempotentRepository(redis, group);
        seen.setExpiry(24 * 60 * 60);
        var effects = new AtomicIntegerArray(tokens);
        var begun = new AtomicBoolean();
        var left = new AtomicInteger(tokens);
        var through = new CountDownLatch(messages);
        var cpu = new double[1];

        var context = new DefaultCamelContext();
        context.addRoutes(new RouteBuilder() {
            @Override
            public void configure() {
                from("kafka:" + topic + "?brokers=" + broker + "&groupId=" + group + "&autoOffsetReset=earliest&consumersCount=" + consumers
                        + "&valueDeserializer=org.apache.kafka.common.serialization.ByteArrayDeserializer")
                    .process(exchange -> {
                        if (measured && !begun.get() && begun.compareAndSet(false, true)) {
                            cpu[0] = cpuSeconds();
                            say("first");
                        }
                    })
                    .idempotentConsumer(header("Idempotency-Key").convertToString(), seen)
                    .process(exchange -> {
                        int token = (int) ByteBuffer.wrap(exchange.getMessage().getBody(byte[].class)).getLong();
                        if (effects.incrementAndGet(token) == 1 && left.decrementAndGet() == 0 && measured) {
                            say("handled " + (cpuSeconds() - cpu[0]));
                        }
                    })
                    .end()
                    .process(exchange -> through.countDown());
            }
        });
        context.start();
        through.await();
        if (measured) {
            var digits = new StringBuilder("effects ");
            for (int i = 0; i < tokens; i++) {
                digits.append(Math.min(effects.get(i), 9));
            }
            say(digits.toString());
        }
        return context;
    }

    private static double cpuSeconds() {
        return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime() / 1e9;
    }

    private static void say(String line) {
        System.out.println(line);
        System.out.flush();
    }
}
