//go:build linux

package itest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/node"
	"fwd/itest/fwdtest"
	"fwd/itest/lab"
	"fwd/relaynode"
)

// A player is this test binary again, on a host of the lab: one node (package node) without the daemon
// around it, so that twenty of them fit on a small machine. It is told what to do by lines on its
// standard input and tells what happens by lines of JSON:
//
//	reach 7     hold peer 7 until "leave 7"; each change of its path is told
//	nat         tell what is known of the NAT
//	again       do again all that rests on the network, the examination of the NAT too

// playerOf is the variable that makes a copy of this binary play.
const playerOf = "FWD_ITEST_PLAYER"

type playerSpec struct {
	Number     int
	Relay      bool
	Relays     map[int][]string // number → addresses
	Listen     []string
	NoGuessing bool
	Mapping    bool // ask the router for ports
}

// told is one line of a player.
type told struct {
	Ready     bool
	Peer      int
	Kind      string
	Transport string
	Remote    string
	MS        float64 // since "reach"
	Reason    string
	NAT       *node.NATReport
}

func playerKey(number int) crypto.PrivKey {
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	binary.BigEndian.PutUint32(seed, uint32(number))
	key, err := crypto.UnmarshalEd25519PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		panic(err)
	}
	return key
}

func playerID(number int) peer.ID {
	id, err := peer.IDFromPrivateKey(playerKey(number))
	if err != nil {
		panic(err)
	}
	return id
}

func multiaddrs(texts []string) (out []ma.Multiaddr) {
	for _, s := range texts {
		out = append(out, ma.StringCast(s))
	}
	return out
}

// listenOn4 is where players listen unless a scenario says otherwise.
func listenOn4(transports ...string) []string {
	var out []string
	for _, t := range transports {
		out = append(out, "/ip4/0.0.0.0/"+t)
	}
	return out
}

const quic4001, tcp4001 = "udp/4001/quic-v1", "tcp/4001"

// play runs one node until its standard input ends.
func play(text string) int {
	var s playerSpec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	var relays []peer.AddrInfo
	for number, addrs := range s.Relays {
		relays = append(relays, peer.AddrInfo{ID: playerID(number), Addrs: multiaddrs(addrs)})
	}
	everyone := func(peer.ID) bool { return true }
	n, err := node.New(node.Config{
		Key: playerKey(s.Number), Relay: s.Relay, Listen: multiaddrs(s.Listen),
		Member: everyone, Relays: func() []peer.AddrInfo { return relays }, NoGuessing: s.NoGuessing, Mapping: s.Mapping,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var ending sync.WaitGroup
	defer ending.Wait()
	defer cancel()
	ending.Go(func() { n.Serve(ctx) })
	if s.Relay {
		r, err := relaynode.New(n.Host(), relaynode.Config{Member: everyone})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		ending.Go(func() { r.Serve(ctx) })
	}
	newStage(n).follow(ctx, len(relays))
	return 0
}

// stage is a player's node and the peers that it was told to reach.
type stage struct {
	node *node.Node
	mu   sync.Mutex
	out  *json.Encoder
	held map[int]func()
	at   map[peer.ID]time.Time
}

func newStage(n *node.Node) *stage {
	return &stage{node: n, out: json.NewEncoder(os.Stdout), held: make(map[int]func()), at: make(map[peer.ID]time.Time)}
}

func (s *stage) tell(t told) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Encode(t)
}

// follow does what standard input says until it ends.
func (s *stage) follow(ctx context.Context, relays int) {
	changes, stop := s.node.Watch()
	defer stop()
	numbers := make(map[peer.ID]int)
	go func() { // ends with Watch
		for c := range changes {
			s.mu.Lock()
			since, ok := s.at[c.Peer]
			number := numbers[c.Peer]
			s.mu.Unlock()
			if ok {
				s.path(number, c.New, since)
			}
		}
	}()
	for ctx.Err() == nil {
		reserved := 0
		for _, r := range s.node.RelayStates() {
			if r.Reserved {
				reserved++
			}
		}
		if reserved == relays {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.tell(told{Ready: true})
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		number, _ := strconv.Atoi(rest)
		p := playerID(number)
		switch verb {
		case "nat":
			nat := s.node.NAT()
			s.tell(told{NAT: &nat})
		case "again":
			s.node.NetworkChanged()
		case "reach":
			s.mu.Lock()
			numbers[p], s.at[p] = number, time.Now()
			s.mu.Unlock()
			s.held[number] = s.node.Hold(p, node.Auto)
			ctx, cancel := context.WithCancel(ctx)
			release := s.held[number]
			s.held[number] = func() { cancel(); release() }
			go s.reasons(ctx, number, p) // ends with "leave"
		case "leave":
			if release := s.held[number]; release != nil {
				release()
				delete(s.held, number)
			}
			s.mu.Lock()
			delete(s.at, p)
			s.mu.Unlock()
			s.node.Host().Network().ClosePeer(p)
		}
	}
}

func (s *stage) path(number int, path node.Path, since time.Time) {
	t := told{Peer: number, Kind: path.Kind, Transport: path.Transport, Reason: path.Reason, MS: float64(time.Since(since).Microseconds()) / 1000}
	if len(path.Remote) > 0 {
		t.Remote = path.Remote.String()
	}
	s.tell(t)
}

// reasons tells a path again when there is a reason for it: no event says so.
func (s *stage) reasons(ctx context.Context, number int, p peer.ID) {
	began := time.Now()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return
		}
		if path, ok := s.node.Path(p); ok && path.Kind == "relay" && path.Reason != "" {
			s.path(number, path, began)
			tick.Stop()
			return
		}
	}
}

// player is a running copy.
type player struct {
	t      *testing.T
	host   *lab.Host
	number int
	in     io.Writer
	log    *logBuffer
	lines  chan told // closed at its end
	end    func()    // asks it to end and waits
}

// logBuffer is what a player logs; it is read while more comes.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func startPlayer(t *testing.T, h *lab.Host, s playerSpec) *player {
	t.Helper()
	if s.Listen == nil {
		s.Listen = listenOn4(quic4001, tcp4001)
	}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(context.Background(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), playerOf+"="+string(text), "GOMAXPROCS=2")
	p := &player{t: t, host: h, number: s.Number, log: new(logBuffer), lines: make(chan told, 256)}
	cmd.Stderr = p.log
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() { // ends with the process
		defer close(over)
		defer close(p.lines)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var l told
			if json.Unmarshal(lines.Bytes(), &l) == nil {
				p.lines <- l
			}
		}
	}()
	p.end = sync.OnceFunc(func() {
		in.Close()
		cmd.Process.Signal(syscall.SIGTERM)
		go func() {
			for range p.lines {
			}
		}()
		<-over
		cmd.Wait()
	})
	t.Cleanup(func() {
		p.end()
		if t.Failed() {
			t.Logf("%s:\n%s", h.Name(), p.log)
		}
	})
	return p
}

func (p *player) do(format string, args ...any) { fmt.Fprintf(p.in, format+"\n", args...) }

// until takes lines until one is as wanted; ok is false if none was in that time.
func (p *player) until(within time.Duration, wanted func(told) bool) (l told, ok bool) {
	limit := time.NewTimer(within)
	defer limit.Stop()
	for {
		select {
		case l, open := <-p.lines:
			if !open {
				return told{}, false
			}
			if wanted(l) {
				return l, true
			}
		case <-limit.C:
			return told{}, false
		}
	}
}

func (p *player) ready() {
	p.t.Helper()
	if _, ok := p.until(time.Minute, func(l told) bool { return l.Ready }); !ok {
		p.t.Fatalf("%s does not come up", p.host.Name())
	}
}

// nat is what the player knows of its NAT. All that it told before has been read then.
func (p *player) nat() node.NATReport {
	p.t.Helper()
	p.do("nat")
	l, ok := p.until(fwdtest.Limit, func(l told) bool { return l.NAT != nil })
	if !ok {
		p.t.Fatalf("%s tells nothing of its NAT", p.host.Name())
	}
	return *l.NAT
}

// examined waits until the player knows its NAT.
func (p *player) examined() node.NATReport {
	p.t.Helper()
	for deadline := time.Now().Add(fwdtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		n := p.nat()
		if n.UDP == "blocked" || n.Filtering != "unknown" {
			return n
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: in %v its NAT was not examined: %+v", p.host.Name(), fwdtest.Limit, n)
		}
	}
}

// tries is how often a machine that stands still for a moment may spoil what is tried once; what fails as often as that
// has another cause. A node that has punched in vain remembers it, so players that are to meet again are new ones.
const tries = 3

// meeting is how two players got to each other.
type meeting struct {
	Route     string // "direct", "relay", or nothing
	Transport string
	Remote    string
	Relayed   time.Duration // from the wish to the relayed connection
	Direct    time.Duration // from the relayed connection to the direct one
	Known     time.Duration // from the relayed connection to the reason why it stays
	Reason    string
}

// meet has p reach b and returns how, or why not; within is for all of it.
func (p *player) meet(b *player, within time.Duration) meeting {
	return p.meetUntil(b, within, func(m meeting) bool { return m.Route == "direct" || m.Reason != "" })
}

// meetUntil is the same until the meeting is as wanted.
func (p *player) meetUntil(b *player, within time.Duration, wanted func(meeting) bool) (m meeting) {
	p.do("reach %d", b.number)
	var relayed float64
	p.until(within, func(l told) bool {
		if l.Peer != b.number {
			return false
		}
		at := func(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
		switch l.Kind {
		case "relay":
			m.Route = "relay"
			if relayed == 0 {
				relayed = l.MS
				m.Relayed = at(l.MS)
			}
			if l.Reason != "" {
				m.Reason, m.Known = l.Reason, at(l.MS-relayed)
			}
		case "direct":
			m.Route, m.Transport, m.Remote, m.Direct = "direct", l.Transport, l.Remote, at(l.MS-relayed)
		}
		return wanted(m)
	})
	return m
}

// step is by which step of the ladder p's first punch towards b got a direct path; "": by none.
func (p *player) step(b *player) string {
	p.t.Helper()
	told := regexp.MustCompile(`msg=punch peer=` + playerID(b.number).String() + ` direct=\w+ step=("?)(\w*)`)
	for deadline := time.Now().Add(fwdtest.Limit); ; time.Sleep(10 * time.Millisecond) {
		if m := told.FindStringSubmatch(p.log.String()); m != nil {
			return m[2]
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s logs no punch towards %s", p.host.Name(), b.host.Name())
		}
	}
}

// part ends the holds and connections between the two.
func (p *player) part(b *player) {
	p.do("leave %d", b.number)
	b.do("leave %d", p.number)
}
