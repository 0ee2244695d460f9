package daemon

import "testing"

func TestTwoExposesAtOnceFoundOneNetwork(t *testing.T) {
	for range 5 {
		m := newMachine(t)
		exposed := make(chan error, 2)
		for _, name := range []string{"one", "two"} {
			go func() {
				c, err := Dial(t.Context(), m.home)
				if err != nil {
					exposed <- err
					return
				}
				exposed <- c.Call(t.Context(), ExposeRequest{Target: "1", Name: name}, func(e Event) {
					if e.Event == "exposed" && len(e.Names) == 2 {
						exposed <- nil
					}
				})
			}()
		}
		for range 2 {
			if err := await(t, exposed, "both are exposed, by their short names"); err != nil {
				t.Fatal(err)
			}
		}
		if s := m.status(); s.Network.Role != "owner" || len(s.Services) != 2 {
			t.Errorf("status is %+v", s)
		}
		m.must(StopRequest{})
	}
}
