//go:build linux

package itest

import (
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// A fault strikes a world in which a forward goes by a certain path.
type fault struct {
	name   string
	path   string          // in use when it strikes: "direct" or "relay"
	relays int             // 0: one
	strike func(w *faulty) // brings it about
	heal   func(w *faulty) // ends it, or makes the world fit for the next strike; may be nil
	lasts  time.Duration   // heal comes so long after strike; 0: after the transfer
	needs  bool            // nothing can flow before heal
	only   []string        // moments; nil: all
}

// limit is how long a stall may last in a test; what it should be is in docs/session.md. Machines that run tests
// are slow, and a fault that is over early hides no hang: that would last a minute.
const stallLimit = 15 * time.Second

// A moment is what a connection is doing when the fault strikes.
var moments = []string{"idle", "client sends", "server sends", "both send", "half-closed", "resuming"}

var faults = []fault{
	{name: "direct path cut", path: "direct",
		strike: func(w *faulty) { w.cutDirect() }, heal: func(w *faulty) { w.mendDirect() }},
	{name: "one-way blackhole", path: "direct",
		strike: func(w *faulty) { w.mend = w.lab.SeverOneWay(w.homes[0].WAN(), w.homes[1].WAN()) }, heal: func(w *faulty) { w.mendDirect() }},
	{name: "NAT table flushed", path: "direct",
		strike: func(w *faulty) { w.homes[1].FlushNAT() }},
	{name: "public address changed", path: "direct",
		strike: func(w *faulty) { w.homes[1].ChangeAddress() }},
	{name: "UDP blocked from now on", path: "direct",
		strike: func(w *faulty) { w.homes[1].BlockUDP() }, heal: func(w *faulty) { w.homes[1].UnblockUDP() }},
	{name: "LAN cable out", path: "direct", lasts: cableOut, needs: true,
		strike: func(w *faulty) { w.laptop.Host.Cable().Unplug() }, heal: func(w *faulty) { w.laptop.Host.Cable().Plug() }},
	{name: "moved to another network", path: "direct",
		strike: func(w *faulty) { w.laptop.Host.MoveTo(w.away) }, heal: func(w *faulty) { w.laptop.Host.MoveTo(w.homes[1]) }},
	{name: "exposer's network changed", path: "direct",
		strike: func(w *faulty) { w.nas.Host.MoveTo(w.away) }, heal: func(w *faulty) { w.nas.Host.MoveTo(w.homes[0]) }},
	{name: "20 % loss", path: "direct", lasts: lossLasts,
		strike: func(w *faulty) { w.lose(0.2) }, heal: func(w *faulty) { w.lose(0) }},
	{name: "connector stopped and woken", path: "direct", lasts: sleepLasts, needs: true,
		strike: func(w *faulty) { w.stop() }, heal: func(w *faulty) { w.wake() }},
	{name: "relay killed, another there", path: "relay", relays: 2,
		strike: func(w *faulty) { w.killRelay(w.relayInUse()) }, heal: func(w *faulty) { w.startRelays() }},
	{name: "relay restarted", path: "relay",
		strike: func(w *faulty) { w.killRelay(0); w.startRelays() }},
	{name: "all relays down for a while", path: "relay", lasts: relaysDown, needs: true,
		strike: func(w *faulty) { w.killRelay(0) }, heal: func(w *faulty) { w.startRelays() }},
}

// TestConnectionsSurviveFaults is the promise of a session, as a table of faults × moments. FWD_ROUNDS=n plays each
// n times, FWD_FAULT names one, FWD_STALLS a file for the table of stall times.
func TestConnectionsSurviveFaults(t *testing.T) {
	t.Parallel()
	rounds, _ := strconv.Atoi(os.Getenv("FWD_ROUNDS"))
	results := newStalls()
	t.Cleanup(func() { results.write(t) })
	for _, f := range faults {
		if !strings.Contains(f.name, os.Getenv("FWD_FAULT")) {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			w := newFaulty(t, f)
			for range max(1, rounds) {
				for _, m := range moments {
					if f.only != nil && !slices.Contains(f.only, m) {
						continue
					}
					results.add(f.name, m, w.fair(m), w.resent())
				}
			}
			w.leavesNothingBehind()
		})
	}
}

// faulty is a world in which things break.
type faulty struct {
	*world
	fault   fault
	away    *lab.Home // another home to move to, with another NAT
	connect *fwdtest.Process
	local   string
	idle    string // local address of the forward to an echo server
	relays  []*fwdtest.Peer
	runs    []*fwdtest.Process // the relays' processes, nil while killed
	mend    func()
	stopped int                   // process
	told    map[*fwdtest.Peer]int // migrations counted
	slow    int                   // plays that were over their limit and then not
	open    int                   // descriptors of the two daemons before the first connection
}

func newFaulty(t *testing.T, f fault) *faulty {
	t.Helper()
	w := &faulty{world: newWorld(t, lab.PortRestricted, lab.PortRestricted), fault: f, told: map[*fwdtest.Peer]int{}}
	w.away = w.lab.Home("away", lab.PortRange, slow())
	w.relays, w.runs = []*fwdtest.Peer{w.relay}, []*fwdtest.Process{w.relaying}
	if f.relays == 2 {
		second := fwdtest.New(t, w.lab.Public("relay2", "7.0.0.11"))
		run := second.Start("relay", "--as", "relay2", "--invite", w.relay.Invite("--relay"))
		run.Wait("relay")
		w.relays, w.runs = append(w.relays, second), append(w.runs, run)
	}
	if f.path == "relay" {
		w.cutDirect()
	}
	echo := fwdtest.ServeEcho(t, w.nas.Host, "127.0.0.1:9001")
	w.nas.Start("expose", echo.String(), "--name", "echo").Wait("exposed")
	w.connect, w.local = w.world.connect()
	p := w.laptop.Start("connect", "echo", "127.0.0.1:2223")
	w.idle = p.Wait("listening").Local
	w.ready()
	w.open = w.descriptors()
	return w
}

// ready waits until the forward goes by the fault's path again, and not only by name.
func (w *faulty) ready() {
	w.t.Helper()
	w.laptop.WaitPath("data", w.fault.path)
	for _, p := range []*fwdtest.Peer{w.nas, w.laptop} {
		p.WaitStatus("reserved at every relay", func(s fwdtest.Status) bool {
			return !slices.ContainsFunc(s.Relays, func(r struct {
				Peer      string  `json:"peer"`
				Name      string  `json:"name"`
				Connected bool    `json:"connected"`
				Reserved  bool    `json:"reserved"`
				RTT       float64 `json:"rtt_ms"`
			}) bool {
				return !r.Reserved
			})
		})
	}
	w.settle(w.local, func(got ways) bool { return (w.fault.path == "relay") == (got.relayed > got.udp+got.tcp) })
}

// fair plays, and once more if the stall was over its limit: a machine that stands still for so long is no fault of
// fwd's. It is one if that happens again, or in another of the fault's plays.
func (w *faulty) fair(moment string) (stall time.Duration) {
	w.t.Helper()
	for again := false; ; again = true {
		w.ready()
		w.resent()
		stall = w.play(moment)
		w.t.Logf("%s: longest stall %v", moment, stall.Round(10*time.Millisecond))
		allowed := w.allowed(moment)
		if stall <= allowed {
			return stall
		}
		if again || w.slow > 0 {
			w.t.Errorf("%s: stalled for %v, at most %v here", moment, stall, allowed)
			return stall
		}
		w.slow++
		w.t.Logf("%s: over %v, once more; the log of %s:\n%s", moment, allowed, w.laptop.Host.Name(), w.laptop.Log())
	}
}

// play moves a load, has the fault strike in its midst, and returns the longest stall.
func (w *faulty) play(moment string) time.Duration {
	w.t.Helper()
	if moment == "idle" {
		return w.playIdle()
	}
	size := int64(faultSize)
	if faultRate > 0 {
		size = faultRate * int64((w.fault.lasts + 5*time.Second).Seconds())
	}
	load := fwdtest.Load{Rate: faultRate, Limit: w.fault.lasts + 5*fwdtest.Limit}
	struck := make(chan struct{})
	begin := sync.OnceFunc(func() { close(struck) })
	progress := func(n int64) {
		if n > size/5 {
			begin()
		}
	}
	switch moment {
	case "client sends":
		load.Up, load.Down, load.Received = size, 1, progress
	case "server sends":
		load.Up, load.Down, load.Progress, load.UpLast = 1, size, progress, true
	case "half-closed":
		load.Up, load.Down, load.Progress = 1, size, progress
	default:
		load.Up, load.Down, load.Progress = size, size, progress
	}
	type outcome struct {
		report fwdtest.Report
		err    error
	}
	over := make(chan outcome, 1)
	go func() { // ends with the transfer
		r, err := w.data.TransferFrom(w.laptop.Host, w.local, load)
		begin()
		over <- outcome{r, err}
	}()
	<-struck
	w.fault.strike(w)
	if moment == "resuming" && w.fault.heal != nil {
		// Once more, while the first one is being dealt with.
		time.Sleep(w.fault.lasts + 1200*time.Millisecond)
		w.fault.heal(w)
		w.fault.strike(w)
	} else if moment == "resuming" {
		time.Sleep(1200 * time.Millisecond)
		w.fault.strike(w)
	}
	if w.fault.lasts > 0 {
		time.Sleep(w.fault.lasts)
		w.fault.heal(w)
	}
	o := <-over
	if o.err != nil {
		w.t.Fatalf("%s: %v", moment, o.err)
	}
	if w.fault.lasts == 0 && w.fault.heal != nil {
		w.fault.heal(w)
	}
	switch moment {
	case "client sends":
		return o.report.StallUp
	case "both send", "resuming":
		return max(o.report.Stall, o.report.StallUp)
	}
	return o.report.Stall
}

// playIdle has the fault strike a silent connection, which then is asked for an answer.
func (w *faulty) playIdle() time.Duration {
	w.t.Helper()
	conn, err := w.laptop.Host.Dial(w.t.Context(), "tcp", w.idle)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	ask := func() (took time.Duration) {
		start := time.Now()
		conn.SetDeadline(start.Add(fwdtest.Limit))
		_, err := conn.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil {
			w.t.Fatalf("idle: %v", err)
		}
		return time.Since(start)
	}
	ask()
	w.fault.strike(w)
	if w.fault.lasts > 0 {
		time.Sleep(w.fault.lasts)
		w.fault.heal(w)
	}
	took := ask() + w.fault.lasts
	if w.fault.lasts == 0 && w.fault.heal != nil {
		w.fault.heal(w)
	}
	conn.(*net.TCPConn).CloseWrite()
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		w.t.Errorf("idle: after half-close %d, %v", n, err)
	}
	return took
}

// allowed is how long the fault may stall a connection at that moment.
func (w *faulty) allowed(moment string) time.Duration {
	allowed := stallLimit
	if d, err := time.ParseDuration(os.Getenv("FWD_STALL_LIMIT")); err == nil {
		allowed = d // to see the logs of what was slow
	}
	if w.fault.needs {
		allowed += w.fault.lasts
		if moment == "resuming" {
			allowed += w.fault.lasts
		}
	}
	if strings.Contains(w.fault.name, "loss") {
		allowed = fwdtest.Limit // nothing to flee to: only the end counts
	}
	return allowed
}

func (w *faulty) cutDirect() { w.mend = w.lab.Sever(w.homes[0].WAN(), w.homes[1].WAN()) }
func (w *faulty) mendDirect() {
	w.mend()
	w.mend = nil
}

func (w *faulty) lose(share float64) {
	shape := lab.Shape{Delay: delay, Loss: share}
	w.homes[1].Cable().Reshape(shape, shape)
}

func (w *faulty) relayInUse() int {
	w.t.Helper()
	name := w.laptop.WaitPath("data", "relay").Relay
	if name == "relay2" {
		return 1
	}
	return 0
}

func (w *faulty) killRelay(i int) {
	w.runs[i].Kill()
	w.runs[i] = nil
}

func (w *faulty) startRelays() {
	for i, run := range w.runs {
		if run == nil {
			w.runs[i] = w.relays[i].Start("relay", "--as", []string{"relay", "relay2"}[i])
		}
	}
}

// daemons are the processes that hold the connections.
func (w *faulty) daemons() []int {
	return []int{w.laptop.Status().PID, w.nas.Status().PID}
}

// stop freezes the connector's daemon as a suspended machine is, wake lets it go on.
func (w *faulty) stop() {
	w.stopped = w.laptop.Status().PID
	sendSignal(w.t, w.stopped, syscall.SIGSTOP)
}
func (w *faulty) wake() { sendSignal(w.t, w.stopped, syscall.SIGCONT) }

func (w *faulty) descriptors() int {
	n := 0
	for _, pid := range w.daemons() {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			w.t.Fatal(err)
		}
		n += len(list)
	}
	return n
}

// leavesNothingBehind: when all connections are closed no session is there, no descriptor, and no goroutine that
// served one.
func (w *faulty) leavesNothingBehind() {
	w.t.Helper()
	for _, p := range []*fwdtest.Peer{w.laptop, w.nas} {
		p.WaitStatus("no sessions left", func(s fwdtest.Status) bool { return len(s.Sessions) == 0 })
	}
	// Connections to relays and peers come and go; a leak of one for each of the connections would be more.
	const spare = 12
	deadline := time.Now().Add(fwdtest.Limit)
	n := w.descriptors() // looked at once a turn: a punch under way has many sockets for a moment
	for ; n > w.open+spare && time.Now().Before(deadline); n = w.descriptors() {
		time.Sleep(100 * time.Millisecond)
	}
	if n > w.open+spare {
		w.t.Errorf("%d descriptors, %d before", n, w.open)
	}
	pid := w.laptop.Status().PID
	sendSignal(w.t, pid, syscall.SIGQUIT) // a Go program's last words are its goroutines
	for deadline := time.Now().Add(fwdtest.Limit); !strings.Contains(w.laptop.Log(), "SIGQUIT") && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
	}
	_, dump, _ := strings.Cut(w.laptop.Log(), "SIGQUIT")
	for _, f := range []string{"forward.Copy(", "(*Entry).serveConn("} {
		if n := strings.Count(dump, f); n > 0 || dump == "" {
			w.t.Errorf("%d goroutines in %s after all connections were closed (dump of %d bytes)", n, f, len(dump))
		}
	}
}

func sendSignal(t *testing.T, pid int, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, s); err != nil {
		t.Fatalf("%v to %d: %v", s, pid, err)
	}
}

var resentField = regexp.MustCompile(`"?lane attached"?.* resent=(\d+)`)

// resent are the bytes that each migration since the last call had to send again, at both ends.
func (w *faulty) resent() (fresh []int64) {
	for _, p := range []*fwdtest.Peer{w.laptop, w.nas} {
		all := resentField.FindAllStringSubmatch(p.Log(), -1)
		for _, m := range all[w.told[p]:] {
			n, _ := strconv.ParseInt(m[1], 10, 64)
			fresh = append(fresh, n)
		}
		w.told[p] = len(all)
	}
	return fresh
}
