package idem_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	// The manual of the component that this library descends from imports a package
	// idempotent. Its programs are to compile with another import path, and nothing
	// else changed.
	idempotent "github.com/idemq/idemq/idem"
	"github.com/idemq/idemq/internal/redistest"
)

// The manual's sections 3.1 to 3.3.
func TestAncestorFlow(t *testing.T) {
	redisClient := redistest.Start(t).Client(t)

	idem := idempotent.New(
		idempotent.WithRedis(redisClient),
		idempotent.WithPrefix("my_app"),
		idempotent.WithExpire(30),
	)
	ctx := context.Background()
	token, err := idem.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false} {
		pass, err := idem.Check(ctx, token)
		if err != nil || pass != want {
			t.Errorf("check %d: %v, %v, want %v", i+1, pass, err, want)
		}
	}
	ttl := redisClient.PTTL(ctx, issuedKey(t, redisClient, "my_app")).Val()
	if ttl <= 0 {
		t.Errorf("the spent token's key lives %v: it must go by itself", ttl)
	}
}

// The manual's section 4: each option alone, without a client.
func TestAncestorOptions(t *testing.T) {
	var idem *idempotent.Idempotent
	idem = idempotent.New(
		idempotent.WithPrefix("my_custom_prefix"),
	)
	if got := idem.Settings().Prefix; got != "my_custom_prefix" {
		t.Errorf("prefix %q", got)
	}
	idem = idempotent.New(
		idempotent.WithExpire(60),
	)
	if got := idem.Settings().Expire; got != time.Hour {
		t.Errorf("expiry %v", got)
	}
	idem = idempotent.New(
		idempotent.WithPrefix("first"), idempotent.WithPrefix("second"), idempotent.WithPrefix(""),
		idempotent.WithExpire(5), idempotent.WithExpire(7), idempotent.WithExpire(0), idempotent.WithExpire(-1),
	)
	if s := idem.Settings(); s.Prefix != "second" || s.Expire != 7*time.Minute {
		t.Errorf("prefix %q, expiry %v: want the later of two options, and zero values ignored", s.Prefix, s.Expire)
	}
	idem = idempotent.New()
	if s := idem.Settings(); s.Prefix != "idempotent" || s.Expire != time.Hour {
		t.Errorf("defaults: prefix %q, expiry %v", s.Prefix, s.Expire)
	}
}

// The manual's section 8, with its main as a function that tells what it would print.
func ancestorProgram(addr string) (printed string) {
	redisClient := redis.NewClient(&redis.Options{
		Addr: addr,
	})
	defer redisClient.Close()

	idem := idempotent.New(
		idempotent.WithRedis(redisClient),
		idempotent.WithPrefix("example"),
		idempotent.WithExpire(30),
	)

	ctx := context.Background()

	token, err := idem.Token(ctx)
	if err != nil {
		return fmt.Sprintf("token: %v\n", err)
	}

	pass, err := idem.Check(ctx, token)
	if err != nil {
		return fmt.Sprintf("check: %v\n", err)
	}

	if pass {
		return "passed"
	} else {
		return "not passed"
	}
}

func TestAncestorProgram(t *testing.T) {
	if got := ancestorProgram(redistest.Start(t).Addr()); got != "passed" {
		t.Errorf("the program says %q", got)
	}
}

func TestAncestorWithoutRedis(t *testing.T) {
	var none *redis.Client
	for name, idem := range map[string]*idempotent.Idempotent{
		"no client":        idempotent.New(idempotent.WithPrefix("p")),
		"nil client":       idempotent.New(idempotent.WithRedis(nil)),
		"typed nil client": idempotent.New(idempotent.WithRedis(none)),
	} {
		if token, err := idem.Token(t.Context()); token != "" || !errors.Is(err, idempotent.ErrRedisNotEnabled) {
			t.Errorf("%s: Token: %q, %v, want ErrRedisNotEnabled", name, token, err)
		}
		if pass, err := idem.Check(t.Context(), "t"); pass || !errors.Is(err, idempotent.ErrRedisNotEnabled) {
			t.Errorf("%s: Check: %v, %v, want ErrRedisNotEnabled", name, pass, err)
		}
	}
}

func TestAncestorNilClientIsIgnored(t *testing.T) {
	var none *redis.Client
	idem := idempotent.New(
		idempotent.WithRedis(redistest.Start(t).Client(t)),
		idempotent.WithRedis(nil),
		idempotent.WithRedis(none),
	)
	if _, err := idem.Token(t.Context()); err != nil {
		t.Errorf("Token: %v: a nil client must leave the client given before", err)
	}
}

func TestAncestorLaterClientWins(t *testing.T) {
	away := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
	defer away.Close()
	idem := idempotent.New(
		idempotent.WithRedis(away),
		idempotent.WithRedis(redistest.Start(t).Client(t)),
	)
	if _, err := idem.Token(t.Context()); err != nil {
		t.Errorf("Token: %v: the later client must be used", err)
	}
}

func TestAncestorCheckRefuses(t *testing.T) {
	client := redistest.Start(t).Client(t)
	idem := idempotent.New(idempotent.WithRedis(client), idempotent.WithPrefix("app"), idempotent.WithExpire(1))
	other := idempotent.New(idempotent.WithRedis(client), idempotent.WithPrefix("other"))

	expired, err := idem.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := issuedKey(t, client, "app")
	if ttl := client.PTTL(t.Context(), key).Val(); ttl <= 0 || ttl > time.Minute {
		t.Errorf("an issued token may wait %v, want a minute at most", ttl)
	}
	// The server's clock ends the key, as it would after the minute.
	if ok, err := client.PExpire(t.Context(), key, 0).Result(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	elsewhere, err := other.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{
		"empty": "", "unknown": "never-issued", "expired": expired, "of another prefix": elsewhere,
	} {
		if pass, err := idem.Check(t.Context(), token); pass || err != nil {
			t.Errorf("%s: %v, %v, want false, nil", name, pass, err)
		}
	}
}

// issuedKey is the key of the only issued token of a prefix.
func issuedKey(t *testing.T, client *redis.Client, prefix string) string {
	t.Helper()
	keys, err := client.Keys(t.Context(), prefix+":*:%i:*").Result()
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys of issued tokens: %q, %v, want one", keys, err)
	}
	return keys[0]
}

func TestAncestorCheckPassesOnceAmongMany(t *testing.T) {
	const tokens, goroutines = 1000, 64
	client := redistest.Start(t).Client(t)
	guards := []*idempotent.Idempotent{ // two processes
		idempotent.New(idempotent.WithRedis(client)),
		idempotent.New(idempotent.WithRedis(client)),
	}
	for range tokens {
		token, err := guards[0].Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var passed atomic.Int32
		var wg sync.WaitGroup
		start := make(chan struct{})
		for i := range goroutines {
			wg.Go(func() {
				<-start
				pass, err := guards[i%len(guards)].Check(t.Context(), token)
				if err != nil {
					t.Error(err)
				}
				if pass {
					passed.Add(1)
				}
			})
		}
		close(start)
		wg.Wait()
		if n := passed.Load(); n != 1 {
			t.Fatalf("token %s passed %d times among %d goroutines, want once", token, n, goroutines)
		}
	}
}
