package main

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newStatus(a *app) *cobra.Command {
	var req daemon.StatusRequest
	cmd := &cobra.Command{
		Use:     "status",
		GroupID: groupForward,
		Short:   "show what this machine is doing, and by which paths",
		Long: `Show this machine's network, relays, services, forwards and open connections, each
with the path it goes by and, if that is a relay, why.

↑ is what this machine sends, ↓ what it receives, over the last second.`,
		Example:     "fwd status --watch\nfwd status --json | jq '.forwards[].path'",
		Annotations: map[string]string{partExits: "8"},
		Args:        noArgs,
	}
	cmd.Flags().BoolVarP(&req.Watch, "watch", "w", false, "again each second until ended")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		view := &screen{out: a.out}
		show := listed(a, "status", func(s daemon.Status) {
			text := a.out.answers.status(&s, req.Watch)
			switch {
			case req.Watch && a.out.answersThere:
				view.draw(text)
			case req.Watch:
				a.out.painted(text) // an empty line between snapshots
			default:
				a.out.painted(strings.TrimSuffix(text, "\n"))
			}
		})
		if a.out.json && req.Watch {
			show = a.tell // an event each, as of all that lasts
		}
		err := a.askRunning(cmd.Context(), req, show)
		if !a.out.json {
			a.otherNetworks(cmd.Context())
		}
		return err
	}
	return cmd
}

// A screen redraws a text in place: it goes up over what it drew before, so that
// what stood above stays, and the last snapshot stays too.
type screen struct {
	out   *output
	lines int // drawn last
}

func (v *screen) draw(text string) {
	columns, rows := v.out.size()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(lines) > rows-1 { // what scrolls off cannot be redrawn
		lines = append(lines[:max(0, rows-2)], fmt.Sprintf("… %d more lines: fwd status", len(lines)-rows+2))
	}
	var b strings.Builder
	if v.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.lines)
	}
	for _, line := range lines {
		b.WriteString("\r" + cut(line, columns) + "\x1b[K\n")
	}
	b.WriteString("\x1b[J")
	v.out.raw(b.String())
	v.lines = len(lines)
}

// status is the snapshot for a person. watched: with the throughput of the last minute.
func (p painter) status(s *daemon.Status, watched bool) string {
	var b strings.Builder
	p.statusHead(&b, s)
	if watched || s.Traffic.Sent+s.Traffic.Received > 0 {
		p.traffic(&b, s.Traffic)
	}
	if watched {
		p.throughput(&b, s.Traffic.Recent)
	}
	p.section(&b, "relays", rowsOf(s.Relays, relayCells))
	if s.Relaying != nil {
		p.section(&b, "relaying", [][]cell{relayingCells(s.Relaying)})
	}
	p.section(&b, "paths", rowsOf(s.Paths, pathCells))
	p.section(&b, "services", rowsOf(s.Services, serviceCells))
	p.section(&b, "forwards", rowsOf(s.Forwards, forwardCells))
	p.section(&b, "connections", rowsOf(s.Sessions, sessionCells))
	p.section(&b, "not there yet", rowsOf(s.Wishes, wishCells))
	return b.String()
}

// statusHead says what machine this is, and what a person should know of it.
func (p painter) statusHead(b *strings.Builder, s *daemon.Status) {
	if n := s.Network; n != nil {
		fmt.Fprintf(b, "%s, %s of network %q (epoch %d), fwd %s\n", p.paint(strong, s.Name), n.Role, n.Name, n.Epoch, s.Version)
	} else {
		fmt.Fprintf(b, "in no network yet, fwd %s\n", s.Version)
	}
	fmt.Fprintf(b, "%s %s\n", p.paint(faint, "peer   "), s.Peer)
	fmt.Fprintf(b, "%s %s\n", p.paint(faint, "nat    "), natWords(s.NAT))
	for _, w := range s.Warnings {
		fmt.Fprintf(b, "%s %s\n", p.paint(bad, "warning"), plainly(w))
	}
}

// traffic is the sums, and what moves now.
func (p painter) traffic(b *strings.Builder, t daemon.TrafficStatus) {
	fmt.Fprintf(b, "%s %s sent, %s received", p.paint(faint, "traffic"), bytesWord(t.Sent), bytesWord(t.Received))
	if now := rateWords(t.Rate); now != "" {
		fmt.Fprintf(b, "; now %s", now)
	}
	b.WriteString("\n")
}

// rowsOf are a section's rows; what has no cells is left out.
func rowsOf[T any](list []T, cells func(T) []cell) (rows [][]cell) {
	for _, v := range list {
		if row := cells(v); row != nil {
			rows = append(rows, row)
		}
	}
	return rows
}

func relayCells(r daemon.RelayStatus) []cell {
	word, look := relayState(r)
	return []cell{{r.Name, plain}, {word, look}, {rtt(r.RTT), plain}}
}

func relayingCells(r *daemon.RelayingStatus) []cell {
	return []cell{{count(r.Reservations, "reservation"), plain}, {count(r.Circuits, "circuit"), plain},
		{bytesWord(r.Bytes) + " relayed", plain}, {strings.Join(uniqueHostPorts(r.Addrs), " "), faint}}
}

// pathCells is one line of paths: to whom, how, how fast, and why not directly.
func pathCells(w daemon.PathStatus) []cell {
	if w.Path == nil {
		return []cell{{w.Machine, strong}, {"no path now", bad}}
	}
	way, reason := *w.Path, w.Path.Reason
	way.RTT = 0
	return []cell{{w.Machine, strong}, {pathWords(&way), pathStyle(w.Path)}, {rtt(w.Path.RTT), plain},
		{rateWords(w.Rate), good}, {reason, faint}}
}

func serviceCells(v daemon.ServiceStatus) []cell {
	return []cell{{v.Name, strong}, {v.Target, plain}, {allowText(v.Allow), faint},
		{count(v.Sessions, "connection"), plain}, {rateWords(v.Rate), good}}
}

func forwardCells(f daemon.ForwardStatus) []cell {
	where := "on " + f.Machine
	if f.Peer == "" {
		where = "by SOCKS"
	}
	return []cell{{cmp.Or(f.Local, "-"), plain}, {f.Service, strong}, {where, faint}, {count(f.Sessions, "connection"), plain},
		{pathWords(f.Path), pathStyle(f.Path)}, {rateWords(f.Rate), good}}
}

func sessionCells(v daemon.Session) []cell {
	state, look := v.State, bad
	if v.Path != "" {
		state, look = v.State+" "+v.Path, pathStyle(&daemon.Path{Kind: v.Path})
	}
	return []cell{{short(v.ID), faint}, {v.Role, plain}, {sessionService(v), strong}, {v.Machine, plain}, {state, look},
		{bytesWord(v.Sent) + " sent", plain}, {bytesWord(v.Received) + " received", plain},
		{count(v.Migrations, "migration"), faint}, {waits(v), fair}}
}

// wishCells: what is up stands among the services and forwards already.
func wishCells(w daemon.WishStatus) []cell {
	if w.State == "up" {
		return nil
	}
	return []cell{{w.Wish, plain}, {w.State, fair}, {w.Error, plain}}
}

// allowText: "for members, tag:ops, not phone".
func allowText(words []string) string {
	var list []string
	for _, w := range words {
		if who, denied := strings.CutPrefix(w, "!"); denied {
			w = "not " + who
		}
		list = append(list, w)
	}
	return "for " + strings.Join(list, ", ")
}

// sessionService marks the flows of datagrams.
func sessionService(s daemon.Session) string {
	if s.Protocol != "" {
		return s.Service + "/" + s.Protocol
	}
	return s.Service
}

func pathStyle(p *daemon.Path) style {
	switch {
	case p == nil:
		return bad
	case p.Kind == "relay":
		return fair
	case p.Kind == "direct":
		return good
	}
	return plain
}

// throughput draws the last minute, a column a second, each direction by itself.
func (p painter) throughput(b *strings.Builder, seconds []daemon.Rate) {
	var up, down []int64
	for range 60 - min(60, len(seconds)) {
		up, down = append(up, 0), append(down, 0)
	}
	for _, r := range seconds {
		up, down = append(up, r.Sent), append(down, r.Received)
	}
	for _, d := range []struct {
		word   string
		values []int64
	}{{"sent", up}, {"received", down}} {
		most := slices.Max(d.values)
		peak := ""
		if most > 0 {
			peak = "at most " + bytesWord(most) + "/s"
		}
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("  %-8s %s %s", d.word, p.paint(good, sparkline(d.values)), p.paint(faint, peak)), " "))
	}
}

// rateWords: "↑ 1.2 MiB/s ↓ 40 KiB/s" as seen from here; nothing where nothing moves.
func rateWords(r daemon.Rate) string {
	var parts []string
	if r.Sent > 0 {
		parts = append(parts, "↑ "+bytesWord(r.Sent)+"/s")
	}
	if r.Received > 0 {
		parts = append(parts, "↓ "+bytesWord(r.Received)+"/s")
	}
	return strings.Join(parts, " ")
}

// waits is what a detached connection waits for, and how long it will.
func waits(s daemon.Session) string {
	if s.WaitsFor == "" || s.HeldTill == nil {
		return ""
	}
	return "waits for " + s.WaitsFor + ", until " + s.HeldTill.Local().Format("Jan 2 15:04")
}

func natWords(n daemon.NATStatus) string {
	var parts []string
	add := func(label, value string) {
		if value != "" && value != "unknown" {
			parts = append(parts, strings.TrimSpace(label+" "+value))
		}
	}
	add("", n.Reachability)
	add("udp", n.UDP)
	add("tcp", n.TCP)
	add("filtering", n.Filtering)
	add("port mapping", n.PortMapping)
	if len(parts) == 0 {
		return "not known yet"
	}
	return strings.Join(parts, ", ")
}

func relayState(r daemon.RelayStatus) (string, style) {
	switch {
	case !r.Connected:
		return "not reached", bad
	case !r.Reserved:
		return "connected, no reservation", fair
	}
	return "connected, reserved", good
}

func rtt(ms float64) string {
	if ms <= 0 {
		return ""
	}
	return millis(ms)
}

func uniqueHostPorts(addrs []string) (list []string) {
	seen := map[string]bool{}
	for _, a := range addrs {
		if hp := hostPort(a); !seen[hp] {
			seen[hp] = true
			list = append(list, hp)
		}
	}
	return list
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// bytesWord prints a number of bytes in binary units.
func bytesWord(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

func short(id string) string { return id[:min(len(id), 8)] }

func newLs(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:         "ls",
		GroupID:     groupForward,
		Short:       "list the services that this machine may use",
		Annotations: map[string]string{partExits: "6"},
		Args:        noArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return list(cmd.Context(), a, daemon.LsRequest{}, "ls", func(services []daemon.LsEntry) {
			if len(services) == 0 {
				a.out.story("no service of another machine here; on it, expose one: fwd expose 22 --name NAME")
				return
			}
			rows := [][]string{{"NAME", "MACHINE", "PORT", "STATE", "PATH"}}
			for _, s := range services {
				port := ""
				if s.Port != 0 {
					port = strconv.Itoa(s.Port)
				}
				if s.Last != 0 {
					port += "-" + strconv.Itoa(s.Last)
				}
				if s.UDP {
					port += "/udp"
				}
				rows = append(rows, []string{s.Service, s.Machine, port, s.State, pathWords(s.Path)})
			}
			a.out.table(rows)
		})
	}
	return cmd
}

func newPing(a *app) *cobra.Command {
	var req daemon.PingRequest
	cmd := &cobra.Command{
		Use:     "ping NAME",
		GroupID: groupForward,
		Short:   "measure the way to a machine, once a second",
		Example: "fwd ping nas --until-direct\nfwd ping nas-box -c 3",
		Annotations: map[string]string{
			partArgs:  "NAME\tmachine, service or peer ID",
			partExits: "3 6",
		},
		Args: words(1, 1),
	}
	cmd.Flags().IntVarP(&req.Count, "count", "c", 0, "end after `N` answers; default: when ended")
	cmd.Flags().BoolVar(&req.UntilDirect, "until-direct", false, "end with the first answer by a direct path; exit 6 if none comes")
	timeout := spanVar(cmd, "timeout", "how long the first answer may take; default 30s")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if req.Count < 0 {
			return usageError(usageLine(cmd), "--count %d: less than no answers", req.Count)
		}
		req.Name, req.Timeout = args[0], time.Duration(*timeout)
		return a.ask(cmd.Context(), req, func(e daemon.Event) {
			if a.out.json || e.Event != "pong" {
				a.tell(e)
				return
			}
			a.out.answer("%s: %s", e.Machine, pathWords(e.Path))
		})
	}
	return cmd
}
