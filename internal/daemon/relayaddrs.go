package daemon

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	ma "github.com/multiformats/go-multiaddr"
)

// How people write a relay's addresses, for --listen, --announce and --at:
//
//	4001             UDP (QUIC) and TCP, IPv4 and IPv6
//	443              UDP and WebSocket over TLS: what passes for the web
//	4001/udp  4001/tcp  8443/wss     one of them
//	addr:4001        on one address of this machine, or under that name
//	/ip4/…           a multiaddr, as it is
//
// Port 443 has no plain TCP: libp2p would never dial WebSocket where the same port has it, and plain
// libp2p is just what networks that let out the web alone would stop.

// webPort is the port of the web.
const webPort = "443"

const listenWords = "a port, addr:port, either with /udp, /tcp or /wss, or a multiaddr"

// transportsOf are the ends of multiaddrs that "PORT" or "PORT/KIND" stands for; nil: no such kind.
// QUIC comes first, for it is dialled first.
func transportsOf(port, kind string) []string {
	quic, tcp, wss := "/udp/"+port+"/quic-v1", "/tcp/"+port, "/tcp/"+port+"/tls/ws"
	switch kind {
	case "udp":
		return []string{quic}
	case "tcp":
		return []string{tcp}
	case "wss":
		return []string{wss}
	case "":
		if port == webPort {
			return []string{quic, wss}
		}
		return []string{quic, tcp}
	}
	return nil
}

func withPrefix(prefix string, ends []string) []ma.Multiaddr {
	var addrs []ma.Multiaddr
	for _, end := range ends {
		if a, err := ma.NewMultiaddr(prefix + end); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// bothTransports are QUIC and TCP.
func bothTransports(prefix, port string) []ma.Multiaddr {
	return withPrefix(prefix, []string{"/udp/" + port + "/quic-v1", "/tcp/" + port})
}

// listenAddrs reads one word of --listen.
func listenAddrs(word string) ([]ma.Multiaddr, error) {
	if strings.HasPrefix(word, "/") {
		a, err := ma.NewMultiaddr(word)
		if err != nil {
			return nil, usage(listenWords, "--listen %s: %v", word, err)
		}
		return []ma.Multiaddr{a}, nil
	}
	address, kind, given := strings.Cut(word, "/")
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = "", address
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return nil, usage(listenWords, "--listen %s: %q is no port", word, port)
	}
	ends := transportsOf(port, kind)
	if ends == nil || given && kind == "" {
		return nil, usage(listenWords, "--listen %s: %q is neither udp, tcp nor wss", word, kind)
	}
	hosts := []string{"0.0.0.0", "::"}
	if host != "" {
		hosts = []string{host}
	}
	var addrs []ma.Multiaddr
	for _, h := range hosts {
		ip, err := netip.ParseAddr(h)
		if err != nil {
			return nil, usage("an address of this machine; a name goes to --announce", "--listen %s: %v", word, err)
		}
		addrs = append(addrs, withPrefix(ipPrefix(ip), ends)...)
	}
	return addrs, nil
}

// announceAddrs reads HOST[:PORT[/KIND]], HOST being an address or a domain name; without PORT it is
// a relay's usual one.
func announceAddrs(word string) ([]ma.Multiaddr, error) { return announceListened(word, nil) }

// announceListened is announceAddrs where a HOST alone stands for all that is listened on.
func announceListened(word string, listen []ma.Multiaddr) ([]ma.Multiaddr, error) {
	const want = "HOST or HOST:PORT"
	if strings.HasPrefix(word, "/") {
		a, err := ma.NewMultiaddr(word)
		if err != nil {
			return nil, usage("HOST, HOST:PORT, or a multiaddr", "%s: %v", word, err)
		}
		return []ma.Multiaddr{a}, nil
	}
	address, kind, given := strings.Cut(word, "/")
	host, port, err := net.SplitHostPort(address)
	alone := err != nil
	if alone {
		host, port = strings.Trim(address, "[]"), strconv.Itoa(relayPort)
	}
	ends := transportsOf(port, kind)
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 || host == "" || ends == nil || given && (alone || kind == "") {
		return nil, usage(want, "%s is no address", word)
	}
	if strings.ContainsAny(host, " %@,;'\"") {
		return nil, usage(want, "%q is no host name", host)
	}
	if alone && len(listen) > 0 {
		ends = nil
		for _, l := range listen {
			if _, end := ma.SplitFirst(l); len(end) > 0 && !slices.Contains(ends, end.String()) {
				ends = append(ends, end.String())
			}
		}
	}
	prefix := "/dns/" + host
	if ip, err := netip.ParseAddr(host); err == nil {
		prefix = ipPrefix(ip)
	}
	addrs := withPrefix(prefix, ends)
	if len(addrs) == 0 {
		return nil, usage(want, "%s is no address", word)
	}
	return addrs, nil
}

func ipPrefix(ip netip.Addr) string {
	if ip.Is4() {
		return "/ip4/" + ip.String()
	}
	return "/ip6/" + ip.String()
}
