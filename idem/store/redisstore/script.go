package redisstore

import (
	"context"
	"crypto/sha1"
	_ "embed"
	"encoding/hex"

	"github.com/redis/go-redis/v9"
)

//go:embed records.lua
var recordsSource string

//go:embed compact.lua
var compactSource string

//go:embed descriptor.lua
var descriptorSource string

//go:embed incarnation.lua
var incarnationSource string

//go:embed rights.lua
var rightsSource string

// script is a Lua script and the digest under which Redis keeps it.
type script struct {
	source, sha     string
	bySource, bySHA [2]any // how the commands that run it begin
}

func newScript(source string) script {
	sum := sha1.Sum([]byte(source))
	sha := hex.EncodeToString(sum[:])
	return script{source: source, sha: sha, bySource: [2]any{"eval", source}, bySHA: [2]any{"evalsha", sha}}
}

// scripts are one layout's, registered twice. Redis refuses the first at maxmemory, and
// executes the second, which is for operations that make no claim.
type scripts struct{ claim, completion script }

func newScripts(source string) *scripts {
	return &scripts{claim: newScript("#!lua\n" + source), completion: newScript("#!lua flags=allow-oom\n" + source)}
}

var (
	recordsScripts = newScripts("local sets\n" + recordsSource)
	compactScripts = newScripts(compactSource + recordsSource)

	descriptorScript  = newScript(descriptorSource)
	readScript        = newScript("#!lua flags=no-writes\nreturn redis.call('GET', KEYS[1])")
	incarnationScript = newScript(incarnationSource)
	rightsScript      = newScript(rightsSource)
)

// eval runs a script with one key.
func (s *Store) eval(ctx context.Context, sc script, key string, args ...any) *redis.Cmd {
	cmd := s.client.EvalSha(ctx, sc.sha, []string{key}, args...)
	if isNoScript(cmd.Err()) {
		cmd = s.client.Eval(ctx, sc.source, []string{key}, args...)
	}
	return cmd
}
