//go:build linux

package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/itest/lab"
	"fwd/itest/leaks"
	"fwd/relaynode"
)

// Nodes behind real NATs: each is this test binary again, started on a host of the lab.

// playerSpec is the variable that makes a copy of the test binary play one node.
const playerSpec = "FWD_NODE_PLAYER"

func TestMain(m *testing.M) {
	if spec := os.Getenv(playerSpec); spec != "" {
		os.Exit(play(spec))
	}
	leaks.Main(inLab{m})
}

// inLab runs the tests where namespaces can be made.
type inLab struct{ *testing.M }

func (m inLab) Run() int { return lab.Run(m.M.Run) }

// spec is what a player plays. Keys follow from small numbers, so that everyone knows everyone.
type spec struct {
	Key    byte
	Relay  bool
	Relays map[string]byte // address → key
	Reach  byte            // hold this peer and tell how it is reached
}

const players = 10

func playerKey(n byte) crypto.PrivKey {
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)))
	if err != nil {
		panic(err)
	}
	return key
}

func playerID(n byte) peer.ID {
	id, err := peer.IDFromPrivateKey(playerKey(n))
	if err != nil {
		panic(err)
	}
	return id
}

// play runs one node until it is told to end. What happens to it is told on stdout, a line each:
// "ready", "path KIND TRANSPORT MILLISECONDS REASON".
func play(text string) int {
	var s spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	members := make(map[peer.ID]bool)
	for n := range byte(players) {
		members[playerID(n)] = true
	}
	var relays []peer.AddrInfo
	for a, key := range s.Relays {
		relays = append(relays, peer.AddrInfo{ID: playerID(key), Addrs: []ma.Multiaddr{
			ma.StringCast("/ip4/" + a + "/udp/4001/quic-v1"), ma.StringCast("/ip4/" + a + "/tcp/4001"),
		}})
	}
	n, err := New(Config{
		Key: playerKey(s.Key), Relay: s.Relay,
		Listen: []ma.Multiaddr{ma.StringCast("/ip4/0.0.0.0/udp/4001/quic-v1"), ma.StringCast("/ip4/0.0.0.0/tcp/4001")},
		Member: func(p peer.ID) bool { return members[p] },
		Relays: func() []peer.AddrInfo { return relays },
		Log:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if s.Relay {
		r, err := relaynode.New(n.Host(), relaynode.Config{Member: func(p peer.ID) bool { return members[p] }})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go r.Serve(ctx)
		fmt.Println("ready")
	} else {
		go func() {
			for len(n.NAT().Observed) == 0 && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(300 * time.Millisecond) // the TCP connection beside, where TCP gets through
			fmt.Println("ready")
			if s.Reach != 0 {
				tellPaths(ctx, n, playerID(s.Reach))
			}
		}()
	}
	if err := n.Serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return 0
}

func tellPaths(ctx context.Context, n *Node, p peer.ID) {
	changes, stop := n.Watch()
	defer stop()
	defer n.Hold(p, Auto)()
	start := time.Now()
	for {
		select {
		case c := <-changes:
			if c.Peer == p {
				fmt.Println("path", c.New.Kind, c.New.Transport, time.Since(start).Milliseconds(), c.New.Reason)
			}
		case <-time.After(8 * time.Second):
			path, _ := n.Path(p)
			fmt.Println("path", path.Kind, path.Transport, time.Since(start).Milliseconds(), path.Reason)
		case <-ctx.Done():
			return
		}
	}
}

// player is a running copy.
type player struct {
	t     *testing.T
	cmd   *lab.Cmd
	lines *bufio.Scanner
	log   *bytes.Buffer
}

func startPlayer(t *testing.T, h *lab.Host, s spec) *player {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), playerSpec+"="+string(text))
	p := &player{t: t, cmd: cmd, log: new(bytes.Buffer)}
	cmd.Stderr = p.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		if t.Failed() || testing.Verbose() && os.Getenv("FWD_TEST_LOG") != "" {
			t.Logf("%s:\n%s", h.Name(), p.log)
		}
	})
	p.lines = bufio.NewScanner(out)
	return p
}

// until reads lines until one begins with prefix, and returns it; "" at the end of output, which comes
// when the player is killed for taking too long.
func (p *player) until(prefix string) string {
	late := time.AfterFunc(time.Minute, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	for p.lines.Scan() {
		if strings.HasPrefix(p.lines.Text(), prefix) {
			return p.lines.Text()
		}
	}
	return ""
}

func TestPunchThroughRealNATs(t *testing.T) {
	for _, c := range []struct {
		a, b lab.NAT
		want string
	}{
		{lab.PortRestricted, lab.PortRestricted, "path direct quic-v1"},
		{lab.PortRestrictedInputAccept, lab.PortRestrictedInputAccept, "path direct quic-v1"},
		{lab.Symmetric, lab.FullCone, "path direct quic-v1"},
		{lab.FullCone, lab.Symmetric, "path direct quic-v1"},
		{lab.UDPBlocked, lab.PortRestricted, "path direct tcp"},
		{lab.Symmetric, lab.Symmetric, "path relay"},
		{lab.Symmetric, lab.PortRestricted, "path direct quic-v1"},
		{lab.PortRestrictedInputAccept, lab.SymmetricBlock, "path direct"}, // on a busy machine TCP may be first
		{lab.Sequential, lab.PortRestricted, "path direct"},
		{lab.Sequential, lab.Sequential, "path direct"},
	} {
		t.Run(fmt.Sprintf("%vx%v", c.a, c.b), func(t *testing.T) {
			for try := 1; ; try++ {
				got := punched(t, c.a, c.b, strings.HasPrefix(c.want, "path relay"))
				if strings.HasPrefix(got, c.want) {
					return
				}
				if try == 3 {
					t.Fatalf("got %q, want %q", got, c.want)
				}
				t.Logf("got %q", got) // on a busy machine TCP may be before QUIC, or an attempt fail; not three times
			}
		})
	}
}

// punched has a connector behind one NAT reach an exposer behind another, and returns the path that they end up with.
func punched(t *testing.T, connector, exposer lab.NAT, relayed bool) string {
	t.Helper()
	l := lab.New(t)
	relay := l.Public("relay", "7.0.0.10")
	a, b := l.Home("a", connector).Host("connector"), l.Home("b", exposer).Host("exposer")
	relays := map[string]byte{relay.Addr().String(): 1}
	if startPlayer(t, relay, spec{Key: 1, Relay: true}).until("ready") == "" {
		t.Fatal("no relay")
	}
	if startPlayer(t, b, spec{Key: 2, Relays: relays}).until("ready") == "" {
		t.Fatal("the exposer does not come up")
	}
	p := startPlayer(t, a, spec{Key: 3, Relays: relays, Reach: 2})
	first := p.until("path") // two changes that come at once are told as one
	if first == "" {
		t.Fatal("not even relayed")
	}
	got := first
	if relayed {
		got = p.until("path")
	} else if !strings.HasPrefix(first, "path direct") {
		got = p.until("path direct")
	}
	t.Logf("%s, then %s", first, got)
	return got
}
