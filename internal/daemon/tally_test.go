package daemon

import "testing"

// Two forwards of one service to one machine are two rows: each counts what goes through it.
func TestEachForwardCountsItsOwnConnections(t *testing.T) {
	nas, laptop := newPair(t)
	nas.hold(ExposeRequest{Target: echo(t, "tcp", "127.0.0.1:0"), Name: "app"}, "exposed")
	nas.hold(ExposeRequest{Target: udpEcho(t) + "/udp", Name: "dns"}, "exposed")
	first, _ := laptop.hold(ConnectRequest{Name: "app", Local: "127.0.0.1:0"}, "listening")
	second, _ := laptop.hold(ConnectRequest{Name: "app", Local: "127.0.0.1:0"}, "listening")
	third, _ := laptop.holdUDP(ConnectRequest{Name: "dns", Local: "127.0.0.1:0/udp"})
	fourth, end := laptop.holdUDP(ConnectRequest{Name: "dns", Local: "127.0.0.1:0/udp"})

	row := func(local string) ForwardStatus {
		for _, f := range laptop.status().Forwards {
			if f.Local == local {
				return f
			}
		}
		return ForwardStatus{Sessions: -1}
	}
	counts := func(what string, want ...int) {
		t.Helper()
		eventually(t, what, func() bool {
			for i, e := range []Event{first, second, third, fourth} {
				if i < len(want) && row(e.Local).Sessions != want[i] {
					return false
				}
			}
			return true
		})
	}
	one := newTalk(t, "tcp", first.Local)
	one.say("a")
	newTalk(t, "tcp", second.Local).say("b")
	busy := newTalk(t, "tcp", second.Local)
	busy.say("c")
	counts("one and two connections", 1, 2, 0, 0)
	for range 2 {
		if !answers(t, udpClient(t, third.Local), patience) {
			t.Fatal("no datagram comes back")
		}
	}
	if !answers(t, udpClient(t, fourth.Local), patience) {
		t.Fatal("no datagram comes back")
	}
	counts("two flows and one beside them", 1, 2, 2, 1)

	eventually(t, "the rate is that of the forward that carries something", func() bool {
		busy.say("once more")
		idle, rate := row(first.Local).Rate, row(second.Local).Rate
		return idle == (Rate{}) && rate.Sent > 0 && rate.Received > 0
	})

	one.c.Close()
	counts("the first has none any more", 0, 2, 2, 1)
	end()
	eventually(t, "the flows' ends are apart, too", func() bool { return row(fourth.Local).Sessions == -1 && row(third.Local).Sessions == 2 })
}

// What has ended still counts for the second in which it did.
func TestATallysRateHasWhatEndedMeanwhile(t *testing.T) {
	var ta tally
	moved := Rate{}
	ended := ta.begin(func() Rate { return moved })
	ta.look(1)
	moved = Rate{Sent: 300, Received: 30}
	ended()
	ended()
	ta.look(3)
	if n, rate := ta.now(); n != 0 || rate != (Rate{100, 10}) {
		t.Errorf("%d, %+v", n, rate)
	}
	if ta.look(1); ta.rate != (Rate{}) {
		t.Errorf("idle: %+v", ta.rate)
	}
}
