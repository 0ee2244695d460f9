package session

import (
	"testing"
	"testing/synctest"
)

// TestTotalsOutliveTheirSessions: what a session carried stays counted at both ends when it has ended.
func TestTotalsOutliveTheirSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		for range 2 {
			c, e := l.session()
			if err := both(c, e, 3000, 500); err != nil {
				t.Fatal(err)
			}
		}
		c, e := l.c.Totals().Traffic, l.e.Totals().Traffic
		if len(c) != 1 || c[0].Role != "entry" || c[0].Peer != peerE || c[0].Opened != 2 || c[0].Sent != 6000 || c[0].Received != 1000 {
			t.Errorf("the entry's totals: %+v", c)
		}
		if len(e) != 1 || e[0].Role != "exit" || e[0].Opened != 2 || e[0].Sent != 1000 || e[0].Received != 6000 {
			t.Errorf("the exit's totals: %+v", e)
		}
	})
}

// TestARefusedSessionCountsAsRefusedAndOpensNothing at the exit: a peer cannot make counters by asking for names.
func TestARefusedSessionCountsAsRefusedAndOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		if _, err := l.c.Dial(t.Context(), peerE, "nas"); err != nil {
			t.Fatal(err)
		}
		in, _ := l.e.Accept(t.Context())
		in.Refuse(Denied)
		if got := l.e.Totals(); len(got.Traffic) != 0 || got.Refused[Denied] != 1 {
			t.Errorf("%+v", got)
		}
	})
}
