package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"fwd/internal/daemon"
)

func newDoctor(a *app) *cobra.Command {
	var req daemon.DoctorRequest
	cmd := &cobra.Command{
		Use:     "doctor",
		GroupID: groupForward,
		Short:   "say what stands in the way of a direct path here, and how to fix it",
		Long: `Examine this machine's way to the network: each relay by UDP, TCP and WebSocket, the
kind of NAT, port mapping, a second NAT, IPv6, firewall, other tunnels, the clock,
names, ports and buffers. What is wrong comes with its fix; hints are what works and
could be better. It asks the relays and the router, nobody else, and changes nothing.

The exit status is 0 only when nothing is wrong.`,
		Example: "fwd doctor\nfwd doctor --lifetime\nfwd doctor --json | jq '.checks[] | select(.level == \"wrong\")'",
		Args:    noArgs,
	}
	cmd.Flags().BoolVar(&req.Lifetime, "lifetime", false, "also measure how long the NAT keeps an unused UDP mapping; up to 5 min")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ok := false
		show := listed(a, "doctor", func(d daemon.Diagnosis) {
			for _, line := range diagnosisLines(d, a.out.width()) {
				a.out.answer("%s", line)
			}
		})
		err := a.ask(cmd.Context(), req, func(e daemon.Event) {
			if e.Event == "doctor" {
				var d daemon.Diagnosis
				a.out.err = json.Unmarshal(e.Result, &d)
				ok = d.OK
			}
			show(e)
		})
		if err == nil && !ok {
			return errUnwell
		}
		return err
	}
	return cmd
}

// errUnwell ends a doctor's visit that found something wrong: all has been said.
var errUnwell = errors.New("something is wrong")

// findingNames are the checks' names for a person.
var findingNames = map[string]string{
	"network": "network", "relay-udp": "UDP", "relay-tcp": "TCP", "relay-wss": "WebSocket",
	"relay-second": "second port", "portal": "login", "dns": "name", "proxy": "proxy",
	"nat": "NAT", "port-mapping": "port mapping", "double-nat": "double NAT", "ipv6": "IPv6", "firewall": "firewall", "vpn": "tunnel",
	"clock": "clock", "port": "port", "udp-buffers": "UDP buffers", "bbr": "BBR", "lifetime": "lifetime",
}

// diagnosisLines are three columns, the last one as wide as the screen lets it be, a fix
// below what it fixes, and the sum at the end.
func diagnosisLines(d daemon.Diagnosis, screen int) (lines []string) {
	name := func(f daemon.Finding) string {
		n := findingNames[f.ID]
		switch {
		case n == "":
			n = f.ID
		case strings.HasPrefix(f.ID, "relay-"):
			return "relay " + f.Of + ", " + n
		case f.Of != "":
			return n + " " + f.Of
		}
		return n
	}
	width, wrong, hints := 0, 0, 0
	for _, f := range d.Checks {
		width = max(width, utf8.RuneCountInString(name(f)))
	}
	for _, f := range d.Checks {
		mark := "  ok   "
		switch f.Level {
		case daemon.FindingHint:
			mark, hints = "  hint ", hints+1
		case daemon.FindingWrong:
			mark, wrong = "  WRONG", wrong+1
		}
		margin := fmt.Sprintf("%*s", width+11, "")
		for i, line := range wrap(f.What, screen-len(margin)) {
			if i == 0 {
				line = fmt.Sprintf("%s  %-*s  %s", mark, width, name(f), line)
			} else {
				line = margin + line
			}
			lines = append(lines, line)
		}
		if f.Mend != "" {
			for _, line := range wrap("fix: "+f.Mend, screen-len(margin)) {
				lines = append(lines, margin+line)
			}
		}
	}
	sum := "nothing is wrong"
	if wrong == 1 {
		sum = "1 thing is wrong"
	} else if wrong > 1 {
		sum = fmt.Sprintf("%d things are wrong", wrong)
	}
	if hints > 0 {
		sum += ", " + count(hints, "hint")
	}
	return append(lines, "", sum)
}

// minWrap: in fewer columns text is broken by the terminal rather than word by word.
const minWrap = 40

// wrap breaks text into lines of so many columns.
func wrap(text string, columns int) []string {
	if columns < minWrap {
		return []string{text}
	}
	lines := []string{""}
	for _, word := range strings.Fields(text) {
		line := &lines[len(lines)-1]
		switch {
		case *line == "":
			*line = word
		case utf8.RuneCountInString(*line)+1+utf8.RuneCountInString(word) > columns:
			lines = append(lines, word)
		default:
			*line += " " + word
		}
	}
	return lines
}
