package node

import (
	"testing"
	"time"
)

func TestWhichConnectionIsThePath(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for _, c := range []struct {
		name string
		a, b measured
		want bool // a beats b
	}{
		{"direct beats relay", measured{class: overInternet, rtt: ms(40)}, measured{class: overRelay, rtt: ms(38)}, true},
		{"direct beats a faster relay if not by far", measured{class: overInternet, rtt: ms(110)}, measured{class: overRelay, rtt: ms(60)}, true},
		{"not if slower by half and by 50 ms", measured{class: overInternet, rtt: ms(120)}, measured{class: overRelay, rtt: ms(60)}, false},
		{"then the relay beats it", measured{class: overRelay, rtt: ms(60)}, measured{class: overInternet, rtt: ms(120)}, true},
		{"half as slow again on a fast path is nothing", measured{class: overInternet, rtt: ms(20)}, measured{class: overRelay, rtt: ms(5)}, true},
		{"LAN beats internet", measured{class: onLAN, rtt: ms(3)}, measured{class: overInternet, rtt: ms(2)}, true},
		{"unproved direct does not beat a proved relay", measured{class: overInternet}, measured{class: overRelay, rtt: ms(60)}, false},
		{"unproved both: direct", measured{class: overInternet}, measured{class: overRelay}, true},
		{"silent loses to any", measured{class: onLAN, rtt: ms(1), silent: true}, measured{class: overRelay, rtt: ms(60)}, false},
		{"silent relay loses to an unproved one", measured{class: overRelay}, measured{class: overRelay, rtt: ms(60), silent: true}, true},
		{"within a class faster by a tenth and 5 ms", measured{class: overRelay, rtt: ms(40)}, measured{class: overRelay, rtt: ms(50)}, true},
		{"by less is a tie", measured{class: overRelay, rtt: ms(48)}, measured{class: overRelay, rtt: ms(50)}, false},
		{"QUIC wins a tie", measured{class: overInternet, rtt: ms(11), quic: true}, measured{class: overInternet, rtt: ms(10)}, true},
		{"and more", measured{class: overInternet, rtt: ms(99), quic: true}, measured{class: overInternet, rtt: ms(80)}, true},
		{"but not if it is clearly slower", measured{class: overInternet, rtt: ms(180), quic: true}, measured{class: overInternet, rtt: ms(80)}, false},
	} {
		if got := c.a.beats(c.b); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
		if c.a.beats(c.b) && c.b.beats(c.a) {
			t.Errorf("%s: each beats the other", c.name)
		}
	}
}

func TestWhichConnectionCarriesBulk(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	path := measured{class: overInternet, quic: true, least: ms(50), host: "192.0.2.1"}
	for _, c := range []struct {
		name string
		a    measured
		want bool
	}{
		{"to the same host, measured under load", measured{class: overInternet, least: ms(500), host: "192.0.2.1"}, true},
		{"to the same host, and silent", measured{class: overInternet, least: ms(50), host: "192.0.2.1", silent: true}, false},
		{"to the same host, not heard of yet", measured{class: overInternet, host: "192.0.2.1"}, false},
		{"TCP of the same round trip", measured{class: overInternet, least: ms(50)}, true},
		{"a little slower", measured{class: overInternet, least: ms(56)}, true},
		{"clearly slower", measured{class: overInternet, least: ms(60)}, false},
		{"on the LAN", measured{class: onLAN, least: ms(1)}, true},
		{"over a relay", measured{class: overRelay, least: ms(40)}, false},
		{"QUIC", measured{class: overInternet, quic: true, least: ms(40)}, false},
		{"not heard of yet", measured{class: overInternet}, false},
		{"silent", measured{class: overInternet, least: ms(50), silent: true}, false},
	} {
		if got := c.a.carries(path); got != c.want {
			t.Errorf("%s: got %v", c.name, got)
		}
	}
	circuit := measured{class: overRelay, quic: true, least: ms(50), host: "192.0.2.2"}
	if !(measured{class: overRelay, least: ms(90)}).carries(circuit) {
		t.Error("a circuit by TCP, measured under load, does not carry")
	}
	if (measured{class: overRelay, least: ms(120)}).carries(circuit) {
		t.Error("a circuit that is clearly slower carries")
	}
}
