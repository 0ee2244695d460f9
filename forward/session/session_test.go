package session

import (
	"testing"
	"testing/synctest"
)

func TestBytesArriveBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		c, e := l.session()
		if err := both(c, e, 3<<20, 5<<20); err != nil {
			t.Fatal(err)
		}
	})
}
