//go:build linux

package load

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fwd/itest/fwdtest"
)

// holding is what one daemon holds.
type holding struct {
	usage
	pid      int
	cpu      time.Duration // used since the last sample
	sessions int
	lanes    int
	quic     int // connections
	muxed    int // connections by TCP, WebSocket, and circuits
	stacks   string
}

func (h holding) String() string {
	return fmt.Sprintf("%3d gor %3d fd %3d MiB %4.1f s %2d ses %d lan %d+%d con", h.goroutines, h.descriptors, h.rss>>20,
		h.cpu.Seconds(), h.sessions, h.lanes, h.quic, h.muxed)
}

// sample is what the three hold at a time.
type sample struct {
	at   time.Duration
	path string
	of   [3]holding
}

func (a sample) String() string {
	return fmt.Sprintf("%6v | relay %v | nas %v | laptop %v | %s", a.at, a.of[0], a.of[1], a.of[2], a.path)
}

func (s *soak) all() [3]*fwdtest.Peer { return [3]*fwdtest.Peer{s.relay, s.nas, s.laptop} }

// hold looks at all three, which must be awake.
func (s *soak) hold() (h [3]holding) {
	s.t.Helper()
	for i, p := range s.all() {
		one := &h[i]
		st := p.Status()
		one.usage, one.pid, one.sessions = use(p), st.PID, len(st.Sessions)
		one.stacks = p.Must("debug", "stacks")
		one.lanes = strings.Count(one.stacks, "session.(*lane).carry(")
		one.quic = strings.Count(one.stacks, "quic-go.(*Conn).run(")
		one.muxed = strings.Count(one.stacks, ".(*Session).recvLoop(") - one.lanes
		one.cpu = cpuOf(st.PID)
	}
	return h
}

// cpuOf is what a process has used of it.
func cpuOf(pid int) time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(stat), ") ") // the program's name may have spaces
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// sampling takes a sample now and then.
func (s *soak) sampling(ctx context.Context, every time.Duration) {
	last := s.base
	for tick := time.NewTicker(every); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		path := s.path()
		s.awake.RLock()
		now := s.hold()
		s.awake.RUnlock()
		one := sample{at: s.at(), path: path, of: now}
		for i := range now {
			if now[i].pid == last[i].pid {
				one.of[i].cpu -= last[i].cpu
			}
		}
		last = now
		s.samples = append(s.samples, one)
		s.t.Log(one)
	}
}

// rest waits until nothing is open any more and lanes have been idle for their minute. Where before is given it waits
// until all hold about what they held then, and fails where they do not.
func (s *soak) rest(when string, before *[3]holding) {
	s.t.Helper()
	// Connections to relays and peers come and go with their goroutines, a few at a time.
	const moreGoroutines, moreDescriptors = 25, 10
	patience := max(*patience, 7*time.Minute) // a flow of datagrams is idle for five before it ends
	var now [3]holding
	var wrong []string
	began := time.Now()
	for reasons := 0; ; time.Sleep(5 * time.Second) {
		now, wrong = s.hold(), nil
		for i, p := range s.all() {
			h := now[i]
			if h.sessions > 0 || h.lanes > 0 {
				wrong = append(wrong, fmt.Sprintf("%s: %d sessions, %d lanes", p.Host.Name(), h.sessions, h.lanes))
			}
			if before != nil && (h.goroutines > before[i].goroutines+moreGoroutines || h.descriptors > before[i].descriptors+moreDescriptors) {
				wrong = append(wrong, fmt.Sprintf("%s: %v, before %v", p.Host.Name(), h.usage, before[i].usage))
			}
		}
		if len(wrong) > reasons {
			s.t.Logf("%s waits: %s", time.Now().Format(time.TimeOnly), strings.Join(wrong, "; "))
		}
		reasons = len(wrong)
		if len(wrong) == 0 || time.Since(began) > patience {
			break
		}
	}
	if len(wrong) > 0 {
		s.t.Errorf("%s: after %v still %s", when, patience, strings.Join(wrong, "; "))
	}
	for i, p := range s.all() {
		s.t.Logf("%s: %s %v", when, p.Host.Name(), now[i])
		s.keepFile(fmt.Sprintf("%s-%s.stacks", p.Host.Name(), strings.ReplaceAll(when, " ", "-")), now[i].stacks)
		s.keepFile(fmt.Sprintf("%s-%s.heap", p.Host.Name(), strings.ReplaceAll(when, " ", "-")), p.Must("debug", "heap"))
		if before != nil {
			for _, line := range moreOf(before[i].stacks, now[i].stacks) {
				s.t.Logf("%s: %s", p.Host.Name(), line)
			}
		}
	}
	if before == nil {
		s.base = now
	}
}

var createdBy = regexp.MustCompile(`(?m)^created by (\S+)`)

// moreOf lists who has begun more goroutines than before.
func moreOf(before, now string) (lines []string) {
	count := func(text string) map[string]int {
		n := map[string]int{}
		for _, m := range createdBy.FindAllStringSubmatch(text, -1) {
			n[m[1]]++
		}
		return n
	}
	was := count(before)
	is := count(now)
	for _, who := range slices.Sorted(maps.Keys(is)) {
		if is[who] > was[who] {
			lines = append(lines, fmt.Sprintf("%d goroutines of %s, before %d", is[who], who, was[who]))
		}
	}
	return lines
}

// atTheEnd judges what is left, and tells.
func (s *soak) atTheEnd() {
	t := s.t
	t.Helper()
	s.rest("at rest, after the end", &s.base)
	for _, one := range s.samples {
		t.Log(one)
	}
	for _, what := range slices.Sorted(maps.Keys(s.done)) {
		t.Logf("%6d × %-22s longest %v", s.done[what], what, s.longest[what].Round(time.Millisecond))
	}
	t.Log(s.quarters())
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) == nil {
		t.Logf("this test and its wires took %v of CPU", time.Duration(used.Utime.Nano()+used.Stime.Nano()).Round(time.Second))
	}

	// The last third's memory beside the middle third's: what grows for ever grows there, too.
	const more = 12 << 20
	if n := len(s.samples) / 3; n > 0 {
		for i, p := range s.all() {
			middle, last := median(s.samples[n:2*n], i), median(s.samples[len(s.samples)-n:], i)
			if last > middle+more {
				t.Errorf("%s: %d MiB in the last third, %d in the middle", p.Host.Name(), last>>20, middle>>20)
			}
		}
	}

	logs := map[string]string{"relay": ""}
	for _, run := range s.relays {
		logs["relay"] += run.Said()
	}
	for _, p := range []*fwdtest.Peer{s.nas, s.laptop} {
		old, _ := os.ReadFile(filepath.Join(p.Home, "fwd.log.1"))
		logs[p.Host.Name()] = string(old) + p.Log()
	}
	for name, log := range logs {
		s.keepFile(name+".log", log)
		warned := map[string]int{}
		for line := range strings.Lines(log) {
			if strings.Contains(line, "level=ERROR") || strings.HasPrefix(line, "panic:") || strings.HasPrefix(line, "fatal error:") {
				t.Errorf("%s says: %s", name, line)
			}
			if _, rest, ok := strings.Cut(line, "level=WARN msg="); ok {
				warned[warning.FindString(rest)]++
			}
		}
		for _, what := range slices.Sorted(maps.Keys(warned)) {
			t.Logf("%s warned %d times: %s", name, warned[what], what)
		}
	}
}

var warning = regexp.MustCompile(`^("[^"]*"|\S*)`)

func median(of []sample, i int) int64 {
	var all []int64
	for _, one := range of {
		all = append(all, one.of[i].rss)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// quarters is a table of the four quarters of the soak: of each figure the median and the most.
func (s *soak) quarters() string {
	var b strings.Builder
	b.WriteString("\n| until | daemon | goroutines | descriptors | MiB | CPU | sessions | lanes | connections |\n|---|---|---|---|---|---|---|---|---|\n")
	for q := range 4 {
		part := s.samples[q*len(s.samples)/4 : (q+1)*len(s.samples)/4]
		if len(part) == 0 {
			continue
		}
		for i, p := range s.all() {
			both := func(of func(holding) int) string {
				var all []int
				for _, one := range part {
					all = append(all, of(one.of[i]))
				}
				slices.Sort(all)
				return fmt.Sprintf("%d / %d", all[len(all)/2], all[len(all)-1])
			}
			var cpu time.Duration
			for _, one := range part {
				cpu += one.of[i].cpu
			}
			fmt.Fprintf(&b, "| %v | %s | %s | %s | %s | %.1f s | %s | %s | %s |\n", part[len(part)-1].at, p.Host.Name(),
				both(func(h holding) int { return h.goroutines }), both(func(h holding) int { return h.descriptors }),
				both(func(h holding) int { return int(h.rss >> 20) }), cpu.Seconds(), both(func(h holding) int { return h.sessions }),
				both(func(h holding) int { return h.lanes }), both(func(h holding) int { return h.quic + h.muxed }))
		}
	}
	return b.String()
}
