package daemon

import (
	"testing"

	"fwd/forward"
)

func TestWhichOfOurOwnStandsInTheWay(t *testing.T) {
	for _, c := range []struct {
		have, want string
		collide    bool
	}{
		{"127.0.0.1:8081", "8081", true},
		{"127.0.0.1:8081", "127.0.0.2:8081", false},
		{"127.0.0.1:8081", "0.0.0.0:8081", true},
		{"[::]:8081", "8081", true},
		{"127.0.0.1:8081", "8082", false},
		{"127.0.0.1:8080-8082", "8082", true},
		{"127.0.0.1:8081/udp", "8081", false},
		{"127.0.0.1:8081/udp", "8081/udp", true},
		{"unix:/run/x", "unix:/run/x", true},
		{"unix:/run/x", "unix:/run/y", false},
		{"", "8081", false},
	} {
		at, err := forward.ParseLocal(c.want)
		if err != nil {
			t.Fatal(err)
		}
		if got := collides(c.have, at); got != c.collide {
			t.Errorf("%q and %q: %v", c.have, c.want, got)
		}
	}
}
