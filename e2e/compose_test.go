package e2e_test

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/idemq/idemq/internal/kafkatest"
)

// compose reads docker-compose.yml as Compose does, which checks it against the
// specification's schema.
func compose(t *testing.T) *types.Project {
	t.Helper()
	options, err := cli.NewProjectOptions([]string{"../docker-compose.yml"})
	if err != nil {
		t.Fatal(err)
	}
	project, err := options.LoadProject(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return project
}

// A full version, and what the image is built on: no tag that moves to another release.
var pinned = regexp.MustCompile(`^[a-z/]+:\d+\.\d+\.\d+(-[a-z]+)?$`)

func TestComposeServices(t *testing.T) {
	project := compose(t)
	if got, want := project.ServiceNames(), []string{"kafka", "mariadb", "nats", "postgres", "rabbitmq", "redis"}; !slices.Equal(got, want) {
		t.Errorf("services %q, want %q", got, want)
	}
	// NATS and PostgreSQL have minor and patch releases of their own numbering.
	short := regexp.MustCompile(`^postgres:\d+\.\d+-alpine$`)
	for name, s := range project.Services {
		if !pinned.MatchString(s.Image) && !short.MatchString(s.Image) {
			t.Errorf("%s: image %s is not pinned to a release", name, s.Image)
		}
		if h := s.HealthCheck; h == nil || h.Disable || len(h.Test) < 2 || h.Interval == nil || h.Timeout == nil || h.Retries == nil {
			t.Errorf("%s: make up cannot tell when it is ready", name)
		}
		for _, p := range s.Ports {
			if p.HostIP != "127.0.0.1" || p.Published != fmt.Sprint(p.Target) {
				t.Errorf("%s: port %s:%s:%d, want the same port on 127.0.0.1", name, p.HostIP, p.Published, p.Target)
			}
		}
	}
}

var local = regexp.MustCompile(`\b(?:localhost|127\.0\.0\.1):(\d+)`)

// Where the documents and the examples say that a server is, there is one; and of every
// port that is published, they say so.
func TestComposePorts(t *testing.T) {
	published := map[string]string{}
	for name, s := range compose(t).Services {
		for _, p := range s.Ports {
			published[p.Published] = name
		}
	}
	named := map[string]bool{}
	read := func(path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range local.FindAllStringSubmatch(string(text), -1) {
			named[m[1]] = true
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			if published[m[1]] == "" {
				t.Errorf("%s: %s is no port of docker-compose.yml", path, m[0])
			}
		}
	}
	for _, pattern := range []string{"../*.md", "../docs/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			read(f)
		}
	}
	err := filepath.WalkDir("../examples", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			read(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for port, name := range published {
		if !named[port] {
			t.Errorf("no document and no example names localhost:%s, which %s publishes", port, name)
		}
	}
}

// Kafka's clients are sent to the address that it advertises, so that has to be the
// published one; and a broker starts with the other settings.
func TestComposeKafka(t *testing.T) {
	env := compose(t).Services["kafka"].Environment
	want := map[string]string{
		"KAFKA_LISTENERS":                "PLAINTEXT://:9092,CONTROLLER://localhost:9093",
		"KAFKA_ADVERTISED_LISTENERS":     "PLAINTEXT://localhost:9092",
		"KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
	}
	var props []string
	for name, value := range env {
		if value == nil {
			t.Errorf("%s has no value", name)
			continue
		}
		if w, special := want[name]; special {
			if *value != w {
				t.Errorf("%s is %q, want %q", name, *value, w)
			}
			delete(want, name)
			continue
		}
		key, found := strings.CutPrefix(name, "KAFKA_")
		if !found {
			t.Errorf("%s is no setting of Kafka's", name)
		}
		props = append(props, strings.ToLower(strings.ReplaceAll(key, "_", "."))+"="+*value)
	}
	if len(want) > 0 {
		t.Errorf("not set: %v", want)
	}
	s := kafkatest.Start(t, props...)
	s.CreateTopic(t, "orders", 3)
}

// The NATS server understands the command, and has JetStream and the page that the
// health check asks for.
func TestComposeNATS(t *testing.T) {
	s := compose(t).Services["nats"]
	flags := flag.NewFlagSet("nats-server", flag.ContinueOnError)
	nothing := func() {}
	o, err := server.ConfigureOptions(flags, s.Command, nothing, nothing, nothing)
	if err != nil {
		t.Fatal(err)
	}
	if !o.JetStream || o.StoreDir != "/data" || o.HTTPPort != 8222 {
		t.Errorf("JetStream %v in %q, monitoring on %d", o.JetStream, o.StoreDir, o.HTTPPort)
	}
	if url := s.HealthCheck.Test[len(s.HealthCheck.Test)-1]; url != fmt.Sprintf("http://localhost:%d/healthz", o.HTTPPort) {
		t.Errorf("the health check asks %s", url)
	}
}
