//go:build linux

package itest

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fwd/itest/lab"
)

// matrixOut takes the tables as text, for docs/paths.md.
var matrixOut = flag.String("matrix", "", "append the measured tables to this file")

var statistics = flag.Int("statistics", 0, "how many pairs symmetric × port-restricted to measure; 0: none")

// What the ladder may cost a pair, as docs/paths.md promises it.
const (
	openCeiling  = 8 * time.Second  // 0.6 s on a quiet machine, 4.5 s by fresh ports; the tests share theirs
	guessCeiling = 25 * time.Second // both rounds
	knownCeiling = 40 * time.Second // until a failure is told

	maxPorts   = 2 * 1024 // distinct ports that one side may send to in one attempt
	maxArray   = 256 + 512
	maxPackets = 2*1024 + 400 // UDP, to the peer's address, in one attempt: the ports, handshakes, 40 of simultaneous open
)

var allKinds = []lab.NAT{lab.Open, lab.FullCone, lab.AddressRestricted, lab.PortRestricted, lab.PortRestrictedInputAccept,
	lab.PortRange, lab.Symmetric, lab.SymmetricBlock, lab.Sequential, lab.UDPBlocked}

var shortNames = map[lab.NAT]string{lab.Open: "open", lab.FullCone: "FC", lab.AddressRestricted: "AR", lab.PortRestricted: "PR",
	lab.PortRestrictedInputAccept: "PRa", lab.PortRange: "range", lab.Symmetric: "SYM", lab.SymmetricBlock: "block",
	lab.Sequential: "SEQ", lab.UDPBlocked: "UDPB"}

// expected is the route of a pair where both have UDP and TCP ("": either), and how long it may take.
func expected(a, b lab.NAT) (route string, ceiling time.Duration) {
	random := func(k lab.NAT) bool { return k == lab.Symmetric || k == lab.SymmetricBlock }
	// Those that answer any port of who they have sent to.
	lenient := func(k lab.NAT) bool { return k == lab.Open || k == lab.FullCone || k == lab.AddressRestricted }
	if random(b) {
		a, b = b, a
	}
	switch {
	case !random(a) || lenient(b):
		return "direct", openCeiling // SEQ and UDPB keep their TCP ports
	case a == lab.SymmetricBlock && (b == lab.Sequential || b == lab.UDPBlocked):
		return "", knownCeiling // relayed, but TCP is tried often enough to hit one of 512 ports now and then
	case random(b) || b == lab.Sequential || b == lab.UDPBlocked:
		return "relay", knownCeiling
	}
	return "direct", guessCeiling
}

// expectedUDP is the same without TCP.
func expectedUDP(a, b lab.NAT) (route string, ceiling time.Duration) {
	if a == lab.Sequential && b == lab.Sequential {
		return "direct", guessCeiling
	}
	route, ceiling = expected(a, b)
	if (a == lab.Sequential || b == lab.Sequential) && route == "direct" {
		ceiling = guessCeiling
	}
	return route, ceiling
}

// grid is a matrix at work: a home of each kind for the rows, which connect, and one for the columns,
// which are reached.
type grid struct {
	t          *testing.T
	lab        *lab.Lab
	kinds      [2][]lab.NAT // of the rows, of the columns
	listen     []string
	rows, cols []*player
	cells      [][]cell
}

type cell struct {
	meeting
	packets, ports [2]int // UDP that each side sent the other
}

// newGrid builds the homes and starts all players.
func newGrid(t *testing.T, rows, cols []lab.NAT, listen []string) *grid {
	t.Helper()
	g := &grid{t: t, lab: lab.New(t), kinds: [2][]lab.NAT{rows, cols}, listen: listen}
	vps := g.lab.Public("relay", "7.0.0.10")
	startPlayer(t, vps, playerSpec{Number: 1, Relay: true}).ready()
	relays := map[int][]string{1: {"/ip4/7.0.0.10/" + quic4001, "/ip4/7.0.0.10/" + tcp4001}}
	for side, kinds := range g.kinds {
		for i, k := range kinds {
			name := fmt.Sprintf("%c%d-%s", 'a'+side, i, shortNames[k])
			p := startPlayer(t, g.lab.Home(name+"-router", k, slow()).Host(name),
				playerSpec{Number: 100*(side+1) + i, Relays: relays, Listen: listen})
			if side == 0 {
				g.rows = append(g.rows, p)
			} else {
				g.cols = append(g.cols, p)
			}
		}
	}
	for _, p := range slices.Concat(g.rows, g.cols) {
		p.ready()
	}
	for _, p := range slices.Concat(g.rows, g.cols) {
		p.examined()
	}
	for range rows {
		g.cells = append(g.cells, make([]cell, len(cols)))
	}
	return g
}

// run meets all pairs: in each turn every player is in one pair, so that none disturbs another.
func (g *grid) run() {
	turns := max(len(g.rows), len(g.cols))
	for turn := range turns {
		var pairs sync.WaitGroup
		for i := range g.rows {
			j := (i + turn) % turns
			if j >= len(g.cols) {
				continue
			}
			pairs.Go(func() {
				g.cells[i][j].meeting = g.rows[i].meet(g.cols[j], knownCeiling)
				g.rows[i].part(g.cols[j])
			})
		}
		pairs.Wait()
	}
	flows := g.lab.Flows()
	for i := range g.rows {
		for j := range g.cols {
			g.cells[i][j].count(flows, g.rows[i].host.PublicAddr(), g.cols[j].host.PublicAddr())
		}
	}
}

// count notes what of the flows is between the two.
func (c *cell) count(flows []lab.Flow, a, b netip.Addr) {
	for side, way := range [2][2]netip.Addr{{a, b}, {b, a}} {
		ports := make(map[uint16]bool)
		for _, f := range flows {
			if f.Proto == "udp" && f.Src.Addr() == way[0] && f.Dst.Addr() == way[1] {
				c.packets[side] += int(f.Packets)
				ports[f.Dst.Port()] = true
			}
		}
		c.ports[side] = len(ports)
	}
}

// maxAgain is how many pairs of a grid may need more than one try: a fault that concerns a kind of NAT, or all, has more.
const maxAgain = 2

// check compares with what is expected, cell by cell.
func (g *grid) check(expected func(a, b lab.NAT) (string, time.Duration)) {
	g.t.Helper()
	direct, again := 0, 0
	for i, row := range g.cells {
		for j := range row {
			wrong := g.judge(i, j, expected)
			if wrong != "" {
				again++
			}
			for try := 2; wrong != "" && try <= tries && again <= maxAgain; try++ {
				g.t.Logf("%s; try %d", wrong, try)
				pair := newGrid(g.t, g.kinds[0][i:i+1], g.kinds[1][j:j+1], g.listen)
				pair.run()
				row[j] = pair.cells[0][0]
				wrong = g.judge(i, j, expected)
			}
			if wrong != "" {
				g.t.Error(wrong)
			}
			if row[j].Route == "direct" {
				direct++
			}
		}
	}
	g.t.Logf("%d of %d ordered pairs direct\n%s", direct, len(g.rows)*len(g.cols), g.table())
}

// judge says what is wrong with a cell; "": nothing.
func (g *grid) judge(i, j int, expected func(a, b lab.NAT) (string, time.Duration)) string {
	c, a, b := g.cells[i][j], g.kinds[0][i], g.kinds[1][j]
	pair := fmt.Sprintf("%v connects to %v", a, b)
	want, ceiling := expected(a, b)
	took := c.Direct
	if c.Route != "direct" {
		took = c.Known
	}
	if c.Route == "" || want != "" && c.Route != want || took > ceiling {
		return fmt.Sprintf("%s: %s after %v, want %s within %v; %s", pair, c.Route, took, want, ceiling, c.Reason)
	}
	for side := range 2 {
		if c.ports[side] > maxPorts+8 || c.packets[side] > maxPackets {
			return fmt.Sprintf("%s: side %d sent %d packets to %d ports", pair, side, c.packets[side], c.ports[side])
		}
	}
	if c.Route == "relay" && !strings.Contains(c.Reason, "Would help") {
		return fmt.Sprintf("%s: no help in the reason %q", pair, c.Reason)
	}
	return ""
}

// table is the matrix in Markdown: seconds from relayed to direct, and the UDP packets of both sides.
func (g *grid) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| |")
	for _, k := range g.kinds[1] {
		fmt.Fprintf(&b, " %s |", shortNames[k])
	}
	fmt.Fprintf(&b, "\n|---|%s\n", strings.Repeat("---|", len(g.cols)))
	for i, row := range g.cells {
		fmt.Fprintf(&b, "| **%s** |", shortNames[g.kinds[0][i]])
		for _, c := range row {
			switch c.Route {
			case "direct":
				mark := ""
				if c.Transport != "quic-v1" {
					mark = " T"
				}
				fmt.Fprintf(&b, " %.2f%s", c.Direct.Seconds(), mark)
				if n := c.packets[0] + c.packets[1]; n > 100 {
					fmt.Fprintf(&b, " (%d)", n)
				}
				fmt.Fprintf(&b, " |")
			default:
				fmt.Fprintf(&b, " · |")
			}
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

// write appends the table to the file that the flag names.
func (g *grid) write(title string) {
	if *matrixOut == "" {
		return
	}
	if err := appendTo(*matrixOut, fmt.Sprintf("%s\n\n%s\n", title, g.table())); err != nil {
		g.t.Error(err)
	}
}

func TestEveryPairOfNATsTakesItsRoute(t *testing.T) {
	g := newGrid(t, allKinds, allKinds, nil)
	g.run()
	g.check(expected)
	g.write("UDP and TCP, row connects to column:")
}

// Without TCP nothing hides what becomes of UDP.
func TestEveryPairOfHardNATsMeetsByUDPAlone(t *testing.T) {
	hard := []lab.NAT{lab.PortRestricted, lab.PortRestrictedInputAccept, lab.PortRange, lab.Symmetric, lab.SymmetricBlock, lab.Sequential}
	g := newGrid(t, hard, hard, listenOn4(quic4001))
	g.run()
	g.check(expectedUDP)
	g.write("UDP alone, row connects to column:")
}

// What opens a carrier's NAT reaches a neighbour's router, and one that answers strangers gives the guessing side's port
// another number from then on: that was a port for this punch alone.
func TestGuessingLeavesAHomesOtherPathsAlone(t *testing.T) {
	t.Parallel()
	for try := 1; ; try++ {
		step := besideGuessing(t)
		if step == "open" {
			return
		}
		if try == tries {
			t.Fatalf("laptop to nas by step %q, want direct by simultaneous open", step)
		}
		t.Logf("try %d: laptop to nas by step %q", try, step)
	}
}

// besideGuessing has a phone and then a laptop reach a NAS, and returns by which step of the ladder the laptop met it.
func besideGuessing(t *testing.T) (step string) {
	t.Helper()
	l := lab.New(t)
	l.Near()
	startPlayer(t, l.Public("relay", "7.0.0.10"), playerSpec{Number: 1, Relay: true}).ready()
	relays := map[int][]string{1: {"/ip4/7.0.0.10/" + quic4001}}
	carrier := l.Carrier("carrier", lab.Symmetric)
	var players []*player
	for i, h := range []*lab.Host{
		l.Home("home", lab.PortRestrictedInputAccept, slow()).Host("nas"),
		l.Home("mobile", lab.PortRestricted, slow(), lab.Behind(carrier)).Host("phone"),
		l.Home("office", lab.PortRestricted, slow()).Host("laptop"),
	} {
		players = append(players, startPlayer(t, h, playerSpec{Number: 2 + i, Relays: relays, Listen: listenOn4(quic4001)}))
	}
	for _, p := range players {
		p.ready()
		p.examined()
	}
	nas, phone, laptop := players[0], players[1], players[2]
	guessed := phone.meet(nas, knownCeiling)
	if guessed.Route == "" {
		t.Fatal("the punch has no end")
	}
	t.Logf("phone to nas: %+v", guessed)
	t.Logf("laptop to nas: %+v", laptop.meet(nas, knownCeiling))
	return laptop.step(nas)
}

func TestPairsWithoutUDPMeetByTCP(t *testing.T) {
	kinds := []lab.NAT{lab.Open, lab.PortRestricted, lab.PortRestrictedInputAccept, lab.UDPBlocked}
	g := newGrid(t, kinds, kinds, listenOn4(tcp4001))
	g.run()
	g.check(func(lab.NAT, lab.NAT) (string, time.Duration) { return "direct", openCeiling })
	g.write("TCP alone, row connects to column:")
}

// The birthday punch is a matter of chance, so its promise is one of statistics: go test ./itest -run
// Statistics -statistics 56
func TestStatisticsOfSymmetricWithPortRestricted(t *testing.T) {
	if *statistics == 0 {
		t.Skip("only with -statistics N")
	}
	const side = 8
	kinds := func(k lab.NAT, n int) []lab.NAT { return slices.Repeat([]lab.NAT{k}, n) }
	g := newGrid(t, kinds(lab.Symmetric, side), kinds(lab.PortRestricted, (*statistics+side-1)/side), listenOn4(quic4001))
	g.run()
	var took []time.Duration
	var packets []int
	failed, late := 0, 0
	for _, row := range g.cells {
		for _, c := range row {
			if c.Route != "direct" {
				failed++
				continue
			}
			took = append(took, c.Direct)
			packets = append(packets, c.packets[0]+c.packets[1])
			if c.Direct > 7*time.Second { // when the first attempt is over
				late++
			}
		}
	}
	slices.Sort(took)
	slices.Sort(packets)
	runs := len(took) + failed
	line := fmt.Sprintf("%d pairs symmetric × port-restricted: %d direct, %d of them by the first attempt; median %.2f s, 90 %% %.2f s, slowest %.2f s; packets: median %d, most %d.",
		runs, len(took), len(took)-late, took[len(took)/2].Seconds(), took[len(took)*9/10].Seconds(), took[len(took)-1].Seconds(),
		packets[len(packets)/2], packets[len(packets)-1])
	t.Log(line)
	if len(took)*50 < runs*49 {
		t.Errorf("%d of %d failed", failed, runs)
	}
	if *matrixOut != "" {
		if err := appendTo(*matrixOut, line+"\n"); err != nil {
			t.Error(err)
		}
	}
}

func appendTo(name, text string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
