package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"fwd/internal/daemon"
)

// pathWords is a path in a few words: "direct quic-v1 203.0.113.9:41822 11 ms",
// "via relay vps 38 ms".
func pathWords(p *daemon.Path) string {
	if p == nil {
		return ""
	}
	var parts []string
	if p.Kind == "relay" {
		parts = append(parts, "via relay", p.Relay)
	} else {
		parts = append(parts, p.Kind, p.Transport, hostPort(p.Remote))
	}
	if p.RTT > 0 {
		parts = append(parts, millis(p.RTT))
	}
	switch {
	case p.Bulk != "":
		parts = append(parts, "(bulk by tcp)") // the only transport that is sought for it
	case p.Spread > 1:
		parts = append(parts, fmt.Sprintf("(bulk by %d connections)", p.Spread))
	}
	return strings.Join(strings.Fields(strings.Join(parts, " ")), " ")
}

// millis prints milliseconds as exactly as they matter: 0.24 ms, 3.1 ms, 38 ms.
func millis(ms float64) string {
	digits := 0
	switch {
	case ms < 1:
		digits = 2
	case ms < 10:
		digits = 1
	}
	return strconv.FormatFloat(ms, 'f', digits, 64) + " ms"
}

// hostPort is the host:port of an address as the daemon writes it,
// /ip4/203.0.113.9/udp/41822/quic-v1; what has none stays as it is.
func hostPort(addr string) string {
	parts := strings.Split(addr, "/")
	if len(parts) < 5 || parts[0] != "" || !strings.HasPrefix(parts[1], "ip") && !strings.HasPrefix(parts[1], "dns") {
		return addr
	}
	return net.JoinHostPort(parts[2], parts[4])
}
