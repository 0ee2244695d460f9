package punch

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func TestReportPrintsAndParses(t *testing.T) {
	want := nat(1, Independent, true)
	want.Confirmed = []ma.Multiaddr{ma.StringCast("/ip6/2a00::1/udp/4001/quic-v1")}
	want.UDP.Filtering, want.UDP.Ports = SamePort, Ports{Order: Sequential, Step: -2, Last: 4711}
	want.TCP.Ports = Ports{Order: Block, Low: 2048, High: 4095}
	want.Router = Router{PortMapping: "found", Double: true}
	want.Fresh = 50001
	want.Nonce = bytes.Repeat([]byte{7}, nonceSize)
	relay, err := peer.Decode("12D3KooWEcsmQSKbUERhdux7w7hNwGbM4K7NRPppb7ET1QrGxKWp")
	if err != nil {
		t.Fatal(err)
	}
	want.Proof = Proof{Relay: relay, Addr: want.UDP.Observed[0], At: time.Unix(1e9, 0), Signature: []byte("signed")}
	got, err := ParseReport(want.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestReportTakesOnlyAddressesThatCanBePunchedTo(t *testing.T) {
	r, err := ParseReport([]byte(`{"v":1,"fresh":53,"steps":["open","levitate"],"confirmed":[
		"/ip4/7.0.0.1/udp/1/quic-v1", "/ip4/7.0.0.1/tcp/1", "/ip4/7.0.0.1/tcp/1", "/dns4/example.org/tcp/1", "/memory/1",
		"/ip4/7.0.0.1/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/1", "/ip4/224.0.0.1/udp/1/quic-v1", "/ip4/7.0.0.1/udp/53", "nonsense",
		"/ip4/7.0.0.1/tcp/1/ws", "/p2p/12D3KooWEcsmQSKbUERhdux7w7hNwGbM4K7NRPppb7ET1QrGxKWp/p2p-circuit"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Confirmed) != 2 || len(r.Steps) != 1 || r.Fresh != 0 {
		t.Errorf("took %v, steps %v and port %d", r.Confirmed, r.Steps, r.Fresh)
	}
}

func TestReportIsBounded(t *testing.T) {
	var list []string
	for i := range 100 {
		list = append(list, fmt.Sprintf(`"/ip4/7.0.0.%d/tcp/1"`, i+1))
	}
	r, err := ParseReport([]byte(`{"v":1,"lan":[` + strings.Join(list, ",") + `]}`))
	if err != nil || len(r.LAN) != maxAddrs {
		t.Errorf("%d addresses, %v; want %d", len(r.LAN), err, maxAddrs)
	}
	if _, err := ParseReport(bytes.Repeat([]byte(" "), maxReport+1)); err == nil {
		t.Error("an oversized report was read")
	}
	if _, err := ParseReport([]byte(`{"v":2}`)); err == nil {
		t.Error("a report of an unknown version was read")
	}
}

func FuzzReport(f *testing.F) {
	f.Add(nat(1, Independent, true).Marshal())
	f.Add(strict(sequence(nat(1, Dependent, false), 42000, 1)).Marshal())
	f.Add(fresh(strict(nat(1, Independent, true)), 50001).Marshal())
	f.Add([]byte(`{"v":1,"proof":{"relay":"12D3KooWEcsmQSKbUERhdux7w7hNwGbM4K7NRPppb7ET1QrGxKWp","addr":"/ip4/1.2.3.4/udp/1/quic-v1","at":9,"sig":"AA=="}}`))
	f.Add([]byte(`{"v":1,"udp":{"mapping":"x","observed":["/ip4/1.2.3.4/udp/1/quic-v1"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseReport(b)
		if err != nil {
			return
		}
		again, err := ParseReport(r.Marshal())
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("%+v prints as %s, which parses as %+v, %v", r, r.Marshal(), again, err)
		}
		MakePlan(r, strict(nat(2, Dependent, false)))
		MakePlan(fresh(strict(nat(2, Independent, true)), 50002), r)
		reason(r, nat(2, Dependent, false), "", "")
	})
}

func FuzzMessage(f *testing.F) {
	var b bytes.Buffer
	writeMessage(&b, kindReport, []byte("{}"))
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, body, err := readMessage(bytes.NewReader(b))
		if err != nil {
			return
		}
		var out bytes.Buffer
		writeMessage(&out, kind, body)
		k, again, err := readMessage(&out)
		if err != nil || k != kind || !bytes.Equal(again, body) {
			t.Errorf("message changed: %q %v", again, err)
		}
	})
}
