package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

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
with the path it goes by and, if that is a relay, why.`,
		Example:     "fwd status --watch\nfwd status --json | jq '.forwards[].path'",
		Annotations: map[string]string{partExits: "8"},
		Args:        noArgs,
	}
	cmd.Flags().BoolVarP(&req.Watch, "watch", "w", false, "again each second until ended")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.askRunning(cmd.Context(), req, listed(a, "status", func(s daemon.Status) {
			text := statusText(&s)
			if req.Watch && a.out.answersThere {
				text = "\x1b[H\x1b[2J" + text // the screen anew
			} else if req.Watch {
				text += "\n"
			}
			a.out.answer("%s", strings.TrimSuffix(text, "\n"))
		}))
	}
	return cmd
}

// statusText is the snapshot for a person.
func statusText(s *daemon.Status) string {
	var b strings.Builder
	if n := s.Network; n != nil {
		fmt.Fprintf(&b, "%s, %s of network %q (epoch %d), fwd %s\n", s.Name, n.Role, n.Name, n.Epoch, s.Version)
	} else {
		fmt.Fprintf(&b, "in no network yet, fwd %s\n", s.Version)
	}
	fmt.Fprintf(&b, "peer %s\n", s.Peer)
	fmt.Fprintf(&b, "nat  %s\n", natWords(s.NAT))

	var rows [][]string
	for _, r := range s.Relays {
		rows = append(rows, []string{r.Name, relayState(r), rtt(r.RTT)})
	}
	section(&b, "relays", rows)
	if r := s.Relaying; r != nil {
		section(&b, "relaying", [][]string{
			{count(r.Reservations, "reservation"), count(r.Circuits, "circuit"), strings.Join(uniqueHostPorts(r.Addrs), " ")}})
	}
	rows = nil
	for _, v := range s.Services {
		rows = append(rows, []string{v.Name, v.Target, "for " + strings.Join(v.Allow, ","), count(v.Sessions, "connection")})
	}
	section(&b, "services", rows)
	rows = nil
	for _, f := range s.Forwards {
		way := pathWords(f.Path)
		if way == "" {
			way = "no path now"
		} else if f.Path.Reason != "" {
			way += " (" + f.Path.Reason + ")"
		}
		local := f.Local
		if local == "" {
			local = "-"
		}
		rows = append(rows, []string{local, f.Service, count(f.Sessions, "connection"), way})
	}
	section(&b, "forwards", rows)
	rows = nil
	for _, v := range s.Sessions {
		state := v.State
		if v.Path != "" {
			state += " " + v.Path
		}
		rows = append(rows, []string{short(v.ID), v.Role, v.Service, state, bytesWord(v.Sent) + " sent", bytesWord(v.Received) + " received",
			count(v.Migrations, "migration"), waits(v)})
	}
	section(&b, "connections", rows)
	rows = nil
	for _, w := range s.Wishes {
		if w.State != "up" {
			rows = append(rows, []string{w.Wish, w.State, w.Error})
		}
	}
	section(&b, "not there yet", rows)
	return b.String()
}

// waits is what a detached connection waits for, and how long it will.
func waits(s daemon.Session) string {
	if s.WaitsFor == "" || s.HeldTill == nil {
		return ""
	}
	return "waits for " + s.WaitsFor + ", until " + s.HeldTill.Local().Format("Jan 2 15:04")
}

// section prints aligned rows under a title, or nothing.
func section(b *strings.Builder, title string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	width := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Fprintf(b, "\n%s\n", title)
	for _, r := range rows {
		line := " "
		for i, cell := range r {
			line += fmt.Sprintf(" %-*s ", width[i], cell)
		}
		fmt.Fprintln(b, strings.TrimRight(line, " "))
	}
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

func relayState(r daemon.RelayStatus) string {
	switch {
	case !r.Connected:
		return "not reached"
	case !r.Reserved:
		return "connected, no reservation"
	}
	return "connected, reserved"
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
