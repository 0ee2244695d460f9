package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"fwd/internal/daemon"
)

func someStatus() *daemon.Status {
	relayed := &daemon.Path{Kind: "relay", Relay: "vps", RTT: 38.2, Reason: "both NATs change ports for each destination"}
	direct := &daemon.Path{Kind: "direct", Transport: "quic-v1", Remote: "/ip4/203.0.113.9/udp/41822/quic-v1", RTT: 11.2}
	till := time.Date(2026, 11, 22, 9, 30, 0, 0, time.Local)
	return &daemon.Status{
		V: 1, Peer: "12D3KooWExample", Name: "laptop", Version: "0.1.0",
		Network:  &daemon.NetworkStatus{Name: "home", Epoch: 7, Role: "member"},
		NAT:      daemon.NATStatus{Reachability: "private", UDP: "endpoint-independent", TCP: "unknown", PortMapping: "none"},
		Relays:   []daemon.RelayStatus{{Name: "vps", Connected: true, Reserved: true, RTT: 38.1}, {Name: "attic"}},
		Services: []daemon.ServiceStatus{{Name: "web", Target: "127.0.0.1:3000", Allow: []string{"members"}}},
		Forwards: []daemon.ForwardStatus{
			{Local: "127.0.0.1:2222", Service: "nas", Machine: "nas-box", Sessions: 1, Path: direct, Rate: daemon.Rate{Sent: 2048, Received: 3 << 20}},
			{Local: "127.0.0.1:8080", Service: "printer", Machine: "office", Path: relayed},
		},
		Paths: []daemon.PathStatus{
			{Machine: "nas-box", Path: direct, Rate: daemon.Rate{Sent: 2048, Received: 3 << 20}},
			{Machine: "office", Path: relayed},
			{Machine: "phone"},
		},
		Sessions: []daemon.Session{
			{ID: "3f2a91c0deadbeef", Service: "nas", Machine: "nas-box", Role: "entry", State: "open", Path: "direct", Sent: 40 << 10, Received: 12 << 20, Migrations: 1},
			{ID: "77aa00112233", Service: "printer", Machine: "office", Role: "entry", State: "detached", WaitsFor: "a way to office", HeldTill: &till},
		},
		Traffic: daemon.TrafficStatus{Sent: 1 << 20, Received: 5 << 30, Rate: daemon.Rate{Sent: 2048, Received: 3 << 20},
			Recent: []daemon.Rate{{Received: 1 << 20}, {Sent: 2048, Received: 3 << 20}}},
	}
}

// What is piped has no colour, and each column begins where the one above does.
func TestStatusIsAlignedAndPlainWithoutATerminal(t *testing.T) {
	text := painter(false).status(someStatus(), false)
	if strings.Contains(text, "\x1b") {
		t.Fatalf("colour:\n%s", text)
	}
	for _, want := range []string{
		"laptop, member of network \"home\" (epoch 7), fwd 0.1.0\n",
		"relays\n  vps    connected, reserved  38 ms\n  attic  not reached\n",
		"  nas-box  direct quic-v1 203.0.113.9:41822  11 ms  ↑ 2.0 KiB/s ↓ 3.0 MiB/s\n",
		"  office   via relay vps                     38 ms                           both NATs change ports for each destination\n",
		"  phone    no path now\n",
		"waits for a way to office, until Nov 22 09:30\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	for line := range strings.Lines(text) {
		if strings.TrimRight(line, " \n") != strings.TrimSuffix(line, "\n") {
			t.Errorf("trailing spaces: %q", line)
		}
	}
}

// Colour changes nothing about the words or where they stand.
func TestColourOnlyAddsToTheText(t *testing.T) {
	painted := painter(true).status(someStatus(), true)
	if !strings.Contains(painted, "\x1b[32m") || !strings.Contains(painted, "\x1b[33m") {
		t.Errorf("direct and relay look alike:\n%q", painted)
	}
	var stripped strings.Builder
	code := false
	for _, r := range painted {
		switch {
		case r == '\x1b':
			code = true
		case code:
			code = r != 'm'
		default:
			stripped.WriteRune(r)
		}
	}
	if want := painter(false).status(someStatus(), true); stripped.String() != want {
		t.Errorf("got\n%s\nwant\n%s", stripped.String(), want)
	}
}

func TestWatchShowsAMinuteOfThroughput(t *testing.T) {
	text := painter(false).status(someStatus(), true)
	if !strings.Contains(text, "  received "+strings.Repeat("▁", 58)+"▃█ at most 3.0 MiB/s\n") {
		t.Error(text)
	}
}

func TestCutCountsColumnsAndKeepsColourCodes(t *testing.T) {
	line := painter(true).paint(good, "direct") + " way"
	if got := cut(line, 3); got != "\x1b[32mdir\x1b[0m" {
		t.Errorf("%q", got)
	}
	if got := cut("↑↓abc", 4); utf8.RuneCountInString(got) != 4 {
		t.Errorf("%q", got)
	}
}
