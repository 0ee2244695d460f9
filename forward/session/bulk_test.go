package session

import (
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// move sends n bytes from a to b.
func move(t *testing.T, a, b *Conn, n int) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { a.Write(make([]byte, n)) })
	if _, err := io.ReadFull(b, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}

func TestLaneAsksForAPathForBulkAndGoesBackWhenItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		var mu sync.Mutex
		var wants []Want
		l.open = func(_ context.Context, n int, want Want) (*end, error) {
			mu.Lock()
			wants = append(wants, want)
			mu.Unlock()
			return l.pair(), nil
		}
		asked := func() []Want {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			list := wants
			wants = nil
			return list
		}
		a, b := l.session()
		first := asked()
		if len(first) != 1 || first[0].Bulk || first[0].Now != nil {
			t.Fatalf("asked at first for %+v", first)
		}
		move(t, b, a, bulkBytes+1) // a download: the entry sees it by what it gets
		var bulk *Want
		for _, w := range asked() {
			if w.Bulk {
				bulk = &w
			}
		}
		if bulk == nil || bulk.Now == nil || bulk.Silent {
			t.Fatalf("bulk began, asked for %+v", bulk)
		}
		move(t, b, a, 1)
		b.Close()
		a.Close()
		c, d := l.session() // the link is in use
		defer c.Close()
		time.Sleep(3 * calmTime)
		calm := asked()
		if len(calm) == 0 || calm[len(calm)-1].Bulk || calm[len(calm)-1].Now == nil {
			t.Errorf("bulk is over, asked for %+v", calm)
		}
		move(t, c, d, 1)
	})
}

func TestLaneKeepsItsStreamWhereOpenKnowsNoBetterOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		a, b := l.session()
		l.open = func(_ context.Context, n int, want Want) (*end, error) {
			if want.Now == nil {
				return nil, errors.New("the stream in use is not told")
			}
			return nil, ErrStay
		}
		l.c.Renew(peerE)
		synctest.Wait()
		move(t, a, b, 1000)
		if n := a.Info().Migrations; n != 0 {
			t.Errorf("moved %d times", n)
		}
	})
}

// The peer may know of the better path a moment later than we do.
func TestBetterPathIsTriedAgainWhereTheFirstAttemptFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		a, b := l.session()
		tries := 0
		l.open = func(context.Context, int, Want) (*end, error) {
			if tries++; tries < 4 {
				return nil, errors.New("not yet")
			}
			return l.pair(), nil
		}
		l.c.Renew(peerE)
		time.Sleep(10 * time.Second)
		move(t, a, b, 1000)
		if n := a.Info().Migrations; n != 1 || tries != 4 {
			t.Errorf("moved %d times, tried %d times", n, tries)
		}
	})
}

func TestWishOfTheFarSideIsHeededLaterIfItComesTooSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t)
		defer l.close()
		a, b := l.session()
		before := l.opened()
		l.e.Renew(peerC)
		time.Sleep(100 * time.Millisecond)
		l.e.Renew(peerC)
		time.Sleep(5 * time.Second)
		move(t, a, b, 1000)
		if n := l.opened() - before; n != 2 {
			t.Errorf("attached anew %d times", n)
		}
	})
}
