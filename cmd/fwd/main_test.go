package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

var update = flag.Bool("update", false, "write docs/cli.md anew")

func TestMain(m *testing.M) {
	// The scripts run this very test binary, copied under the name fwd, as fwd; so
	// does a background daemon, since fwd starts its own file.
	testscript.Main(m, map[string]func(){"fwd": main})
}

// The reference is the commands' own help.
func TestReferenceIsCurrent(t *testing.T) {
	const file = "../../docs/cli.md"
	want := reference(newRoot(&app{out: newOutput(os.Stdout, os.Stderr)}))
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ReplaceAll(string(got), "\r\n", "\n") != want {
		t.Errorf("%s does not match the commands: go test ./cmd/fwd -run Reference -update", file)
	}
}

// A command says what it takes, how it ends, and by which variables its flags are set.
func TestEveryCommandIsDescribed(t *testing.T) {
	root := newRoot(&app{out: newOutput(os.Stdout, os.Stderr)})
	eachCommand(root, func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || strings.ToLower(cmd.Short[:1]) != cmd.Short[:1] && !strings.HasPrefix(cmd.Short, "TCP") {
			t.Errorf("%s: short description %q", cmd.CommandPath(), cmd.Short)
		}
		if cmd.Args == nil {
			t.Errorf("%s: takes any arguments", cmd.CommandPath())
		}
		for _, word := range strings.Fields(cmd.Use)[1:] {
			name := strings.Trim(word, "[]")
			if !strings.Contains(cmd.Annotations[partArgs], name+"\t") {
				t.Errorf("%s: %s is not explained", cmd.CommandPath(), name)
			}
		}
		for line := range strings.Lines(cmd.Long) {
			if len(strings.TrimSpace(line)) > 90 {
				t.Errorf("%s: line of %d characters: %s", cmd.CommandPath(), len(line), line)
			}
		}
	})
}

// Words of the manual that troff would take for its own are escaped.
func TestManualHasNoStrayRequests(t *testing.T) {
	requests := map[string]bool{"TH": true, "SH": true, "SS": true, "B": true, "I": true, "PP": true, "TP": true, "nf": true, "fi": true, "RS": true, "RE": true}
	for line := range strings.Lines(manual(newRoot(&app{out: newOutput(os.Stdout, os.Stderr)}))) {
		if !strings.HasPrefix(line, ".") {
			continue
		}
		word, _, _ := strings.Cut(strings.TrimSpace(line[1:]), " ")
		if !requests[word] {
			t.Errorf("line begins like a request: %s", line)
		}
	}
}

func TestPathWords(t *testing.T) {
	for _, c := range []struct {
		path daemon.Path
		want string
	}{
		{daemon.Path{Kind: "direct", Transport: "quic-v1", Remote: "/ip4/203.0.113.9/udp/41822/quic-v1", RTT: 11.2}, "direct quic-v1 203.0.113.9:41822 11 ms"},
		{daemon.Path{Kind: "direct", Transport: "tcp", Remote: "/ip6/2001:db8::1/tcp/4001", RTT: 0.24}, "direct tcp [2001:db8::1]:4001 0.24 ms"},
		{daemon.Path{Kind: "direct", Transport: "quic-v1", Remote: "/ip4/203.0.113.9/udp/41822/quic-v1", RTT: 11.2, Bulk: "/ip4/203.0.113.9/tcp/41822"}, "direct quic-v1 203.0.113.9:41822 11 ms (bulk by tcp)"},
		{daemon.Path{Kind: "relay", Relay: "vps", RTT: 38.4}, "via relay vps 38 ms"},
		{daemon.Path{Kind: "relay", Relay: "vps"}, "via relay vps"},
		{daemon.Path{Kind: "direct", Remote: "/unix/x"}, "direct /unix/x"},
	} {
		if got := pathWords(&c.path); got != c.want {
			t.Errorf("%+v: %q, want %q", c.path, got, c.want)
		}
	}
}

func TestUsageShowsWhatPeopleType(t *testing.T) {
	for _, c := range []struct {
		service string
		port    int
		local   string
		want    string
	}{
		{"nas", 22, "127.0.0.1:2222", "ssh -p 2222 localhost"},
		{"nas", 22, "0.0.0.0:2222", "ssh -p 2222 localhost"},
		{"nas", 22, "192.168.1.2:2222", "ssh -p 2222 192.168.1.2"},
		{"web", 8080, "127.0.0.1:8081", "http://web.localhost:8081"},
		{"web.nas-box", 80, "127.0.0.1:8081", "http://web-nas-box.localhost:8081"},
		{"x", 1234, "127.0.0.1:8081", ""},
		{"nas", 22, "unix:/tmp/s", ""},
	} {
		if got := usage(c.service, c.port, c.local); got != c.want {
			t.Errorf("usage(%q, %d, %s) = %q, want %q", c.service, c.port, c.local, got, c.want)
		}
	}
}

func TestSpanTakesDays(t *testing.T) {
	var s span
	for text, want := range map[string]string{"30s": "30s", "2h": "2h0m0s", "7d": "168h0m0s"} {
		if err := s.Set(text); err != nil || s.String() != want {
			t.Errorf("%q: %q, %v", text, s.String(), err)
		}
	}
	for _, text := range []string{"", "d", "1", "-1h", "-1d", "1.5d", "99999999d", "soon"} {
		if err := s.Set(text); err == nil {
			t.Errorf("%q is taken for %q", text, s.String())
		}
	}
}

// A duration of 0 would be the default: a day, or for good.
func TestNoDurationIsZero(t *testing.T) {
	for _, zero := range []string{"0", "0s", "0d"} {
		for _, line := range []string{"expose 22 --hold", "invite --for", "invite --expires", "connect nas --timeout"} {
			if err := typed(append(strings.Fields(line), zero)); err == nil || !strings.Contains(err.Error(), "leave it out") {
				t.Errorf("fwd %s %s: %v", line, zero, err)
			}
		}
		for _, file := range []string{"[limits]\nhold = %q", "[[expose]]\ntarget = 22\nhold = %q"} {
			path := filepath.Join(t.TempDir(), "fwd.toml")
			if err := os.WriteFile(path, fmt.Appendf(nil, file, zero), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := daemon.CheckConfig(daemon.Home{}, path)
			if f := daemon.FailureOf(err); err == nil || f.Exit != daemon.ExitUsage || !strings.Contains(f.What, "leave it out") {
				t.Errorf("%q is taken: %v", fmt.Sprintf(file, zero), err)
			}
		}
	}
}
