package web

import (
	"context"
	"net/http"

	"github.com/shardgram/shardgram/examples/photoshare/store"
)

// An account is what stands in the forms to sign up and to log in: never the
// password.
type account struct {
	New            bool   // to sign up
	Name, Next     string // Next is the page to go to afterwards
	Field, Problem string // the field that is wrong, and why
}

func (s *Site) signUpForm(v *visit) error { return s.accountForm(v, "signup", "Sign up") }
func (s *Site) logInForm(v *visit) error  { return s.accountForm(v, "login", "Log in") }
func (s *Site) signUp(v *visit) error     { return s.enter(v, "signup", "Sign up", s.store.SignUp) }
func (s *Site) logIn(v *visit) error      { return s.enter(v, "login", "Log in", s.store.LogIn) }

// accountForm shows an empty form to who is not signed in yet.
func (s *Site) accountForm(v *visit, name, title string) error {
	next := v.r.URL.Query().Get("next")
	if v.viewer.ID != 0 {
		return v.redirect(localPath(next, "/"))
	}
	return s.render(v, http.StatusOK, name, page{Title: title, Data: account{New: name == "signup", Next: localPath(next, "")}})
}

// enter signs in the user whom check returns. If the form is wrong it is shown
// again, with the problem at its field.
func (s *Site) enter(v *visit, name, title string,
	check func(ctx context.Context, name, password string) (store.User, error),
) error {
	if err := v.form(); err != nil {
		return err
	}
	form := account{
		New:  name == "signup",
		Name: v.r.PostFormValue("name"),
		Next: localPath(v.r.PostFormValue("next"), ""),
	}
	user, err := check(v.r.Context(), form.Name, v.r.PostFormValue("password"))
	if err != nil {
		f := explain(err)
		if f.field == "" {
			return err
		}
		form.Field, form.Problem = f.field, f.text
		return s.render(v, f.status, name, page{Title: title, Data: form})
	}
	if err := s.sessions.start(v.r.Context(), v, v.r, user.ID); err != nil {
		return err
	}
	return v.redirect(localPath(form.Next, "/"))
}

// logOut ends the session. It asks for no user, so it works for one that is
// gone.
func (s *Site) logOut(v *visit) error {
	if err := s.sessions.end(v.r.Context(), v, v.r); err != nil {
		return err
	}
	return v.redirect("/")
}
