// Command argolint checks Argo Workflows manifests offline, as `argo lint --offline --strict` does: each file
// is read strictly (an unknown field is an error) and goes through Argo's own validation. Templates may refer
// to other templates in the files named.
package main

import (
	"context"
	"fmt"
	"os"

	wfv1 "github.com/argoproj/argo-workflows/v4/pkg/apis/workflow/v1alpha1"
	"github.com/argoproj/argo-workflows/v4/util/logging"
	"github.com/argoproj/argo-workflows/v4/workflow/common"
	"github.com/argoproj/argo-workflows/v4/workflow/validate"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

type templates map[string]*wfv1.WorkflowTemplate

func (t templates) Get(_ context.Context, name string) (*wfv1.WorkflowTemplate, error) {
	if found := t[name]; found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("no WorkflowTemplate %q in the files named", name)
}

type clusterTemplates struct{}

func (clusterTemplates) Get(_ context.Context, name string) (*wfv1.ClusterWorkflowTemplate, error) {
	return nil, fmt.Errorf("no ClusterWorkflowTemplate %q in the files named", name)
}

func main() {
	ctx := logging.WithLogger(context.Background(), logging.NewSlogLogger(logging.Error, logging.Text))
	known, objects, failed := templates{}, map[metav1.Object]string{}, 0
	fail := func(path string, err error) {
		failed++
		fmt.Printf("%s: %v\n", path, err)
	}
	for _, path := range os.Args[1:] {
		text, err := os.ReadFile(path)
		if err != nil {
			fail(path, err)
			continue
		}
		for _, parsed := range common.ParseObjects(ctx, text, true) {
			if parsed.Err != nil {
				fail(path, parsed.Err)
				continue
			}
			objects[parsed.Object] = path
			if template, ok := parsed.Object.(*wfv1.WorkflowTemplate); ok {
				known[template.Name] = template
			}
		}
	}
	opts := validate.ValidateOpts{Lint: true}
	for object, path := range objects {
		var err error
		switch kind := object.(type) {
		case *wfv1.Workflow:
			err = validate.ValidateWorkflow(ctx, known, clusterTemplates{}, kind, nil, opts)
		case *wfv1.WorkflowTemplate:
			err = validate.ValidateWorkflowTemplate(ctx, known, clusterTemplates{}, kind, nil, opts)
		case *wfv1.CronWorkflow:
			err = validate.ValidateCronWorkflow(ctx, known, clusterTemplates{}, kind, nil)
		default:
			err = fmt.Errorf("not an Argo Workflows object: %T", object)
		}
		if err != nil {
			fail(path, err)
		}
	}
	fmt.Printf("%d objects checked, %d errors\n", len(objects), failed)
	if failed > 0 || len(objects) == 0 {
		os.Exit(1)
	}
}
