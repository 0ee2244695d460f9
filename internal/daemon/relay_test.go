package daemon

import (
	"errors"
	"strings"
	"testing"
)

func TestAPortStandsForUDPAndTCPOnBothFamilies(t *testing.T) {
	addrs, err := listenAddrs("4001")
	if err != nil {
		t.Fatal(err)
	}
	want := "/ip4/0.0.0.0/udp/4001/quic-v1 /ip4/0.0.0.0/tcp/4001 /ip6/::/udp/4001/quic-v1 /ip6/::/tcp/4001"
	if got := strings.Join(words(addrs), " "); got != want {
		t.Errorf("listen 4001:\n got %s\nwant %s", got, want)
	}
}

func TestEachListenWordStandsForItsTransports(t *testing.T) {
	for word, want := range map[string]string{
		"7.0.0.10:443":      "/ip4/7.0.0.10/udp/443/quic-v1 /ip4/7.0.0.10/tcp/443/tls/ws",
		"7.0.0.10:443/wss":  "/ip4/7.0.0.10/tcp/443/tls/ws",
		"7.0.0.10:443/tcp":  "/ip4/7.0.0.10/tcp/443",
		"7.0.0.10:53/udp":   "/ip4/7.0.0.10/udp/53/quic-v1",
		"7.0.0.10:8443/wss": "/ip4/7.0.0.10/tcp/8443/tls/ws",
		"443/wss":           "/ip4/0.0.0.0/tcp/443/tls/ws /ip6/::/tcp/443/tls/ws",
	} {
		addrs, err := listenAddrs(word)
		if got := strings.Join(words(addrs), " "); err != nil || got != want {
			t.Errorf("listen %s:\n got %s (%v)\nwant %s", word, got, err, want)
		}
	}
}

func TestAnnouncedHostStandsForAllThatIsListenedOn(t *testing.T) {
	plan, err := planRelay(RelayRequest{Listen: []string{"4001", "443/wss"}, Announce: []string{"vps.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	want := "/dns/vps.example.org/udp/4001/quic-v1 /dns/vps.example.org/tcp/4001 /dns/vps.example.org/tcp/443/tls/ws"
	if got := strings.Join(words(plan.announce), " "); got != want {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

func TestAnnounceTakesNamesAddressesAndPorts(t *testing.T) {
	for word, want := range map[string]string{
		"vps.example.org":         "/dns/vps.example.org/udp/4001/quic-v1",
		"vps.example.org:443":     "/dns/vps.example.org/udp/443/quic-v1",
		"7.0.0.10":                "/ip4/7.0.0.10/udp/4001/quic-v1",
		"[2a00::1]:4002":          "/ip6/2a00::1/udp/4002/quic-v1",
		"/ip4/7.0.0.10/tcp/80/ws": "/ip4/7.0.0.10/tcp/80/ws",
	} {
		addrs, err := announceAddrs(word)
		if err != nil {
			t.Errorf("%s: %v", word, err)
			continue
		}
		if got := addrs[0].String(); got != want {
			t.Errorf("%s: got %s, want %s", word, got, want)
		}
	}
}

func TestAnnounceWithoutAPortTakesTheOneListenedOn(t *testing.T) {
	plan, err := planRelay(RelayRequest{Listen: []string{"127.0.0.1:5000"}, Announce: []string{"7.0.0.10"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := plan.announce[1].String(), "/ip4/7.0.0.10/tcp/5000"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestARelayThatNobodyCouldReachAsksForAnnounce(t *testing.T) {
	_, err := planRelay(RelayRequest{Listen: []string{"127.0.0.1:4001"}})
	var f *Failure
	if !errors.As(err, &f) || f.Exit != ExitUsage || !strings.Contains(f.Hint, "--announce") {
		t.Errorf("got %v, want a usage failure that names --announce", err)
	}
}

func TestBadAddressesAreUsageFailures(t *testing.T) {
	for _, word := range []string{"", "host:70000", "host:x", ":", "/ip4/1.2.3", "1.2.3.4:0", "h:443/http", "h:443/", "h/wss"} {
		if _, err := announceAddrs(word); failureOf(err).Exit != ExitUsage {
			t.Errorf("announce %q: got %v, want a usage failure", word, err)
		}
	}
	for _, word := range []string{"", "x", "70000", "name:4001", "/ip4/1.2.3", "443/http", "443/"} {
		if _, err := listenAddrs(word); failureOf(err).Exit != ExitUsage {
			t.Errorf("listen %q: got %v, want a usage failure", word, err)
		}
	}
}
