/// The crate has another path.
pub trait Renamed: Backend {
    type Draft: Draft;
    fn set_name(&mut self, name: String);
    fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send;
    fn put(
        &self,
        items: &[B],
        layer: L,
    ) -> impl Future<Output = Result<BatchReport>> + Send;
    fn list(&self) -> impl Stream<Item = Result<u8>> + Send;
}
const _: () = {
    struct __DraftCall {}
    impl<'__on, __B: Renamed> crate::facade::layer::Call<&'__on __B> for __DraftCall {
        type Output = <__B as Renamed>::Draft;
        const OPERATION: crate::facade::layer::Operation = crate::facade::layer::Operation::new(
            "draft",
            crate::facade::layer::OperationKind::Control,
        );
        #[inline]
        async fn run(
            &self,
            on: &'__on __B,
        ) -> crate::facade::Result<<__B as Renamed>::Draft> {
            <__B as Renamed>::draft(on).await
        }
    }
    struct __PutCall<'__call> {
        items: &'__call [B],
        layer: L,
    }
    impl<'__on, '__call, __B: Renamed> crate::facade::layer::Call<&'__on __B>
    for __PutCall<'__call> {
        type Output = BatchReport;
        const OPERATION: crate::facade::layer::Operation = crate::facade::layer::Operation::new(
            "put",
            crate::facade::layer::OperationKind::Write,
        );
        fn batch_size(&self) -> ::core::option::Option<usize> {
            ::core::option::Option::Some(self.items.len())
        }
        fn failure(
            output: &BatchReport,
        ) -> ::core::option::Option<&crate::facade::Error> {
            #[allow(unused_imports)]
            use crate::facade::layer::NoReport as _;
            crate::facade::layer::Outcomes::<BatchReport>::failure(output)
        }
        #[inline]
        async fn run(&self, on: &'__on __B) -> crate::facade::Result<BatchReport> {
            <__B as Renamed>::put(
                    on,
                    ::core::clone::Clone::clone(&self.items),
                    ::core::clone::Clone::clone(&self.layer),
                )
                .await
        }
        fn failed_items(
            output: &mut BatchReport,
            again: impl ::core::ops::FnMut(&mut crate::facade::Error) -> bool,
        ) -> ::std::vec::Vec<usize> {
            #[allow(unused_imports)]
            use crate::facade::layer::NoReport as _;
            crate::facade::layer::Outcomes::<BatchReport>::failed_items(output, again)
        }
        async fn run_items(
            &self,
            on: &'__on __B,
            items: &[usize],
        ) -> crate::facade::Result<BatchReport> {
            let part: ::std::vec::Vec<_> = items
                .iter()
                .map(|at| ::core::clone::Clone::clone(&self.items[*at]))
                .collect();
            <__B as Renamed>::put(on, &part, ::core::clone::Clone::clone(&self.layer))
                .await
        }
        fn merge_items(
            report: &mut BatchReport,
            items: &[usize],
            result: crate::facade::Result<BatchReport>,
        ) {
            #[allow(unused_imports)]
            use crate::facade::layer::NoReport as _;
            crate::facade::layer::Outcomes::<
                BatchReport,
            >::merge_items(report, items, result);
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__L: crate::facade::layer::Layer, __B: Renamed> Renamed
    for crate::facade::layer::Layered<__L, __B> {
        type Draft = Wrapper<__L, <__B as Renamed>::Draft>;
        fn set_name(&mut self, name: String) {
            crate::facade::layer::Layer::set_name(
                self.layer_mut(),
                ::core::clone::Clone::clone(&name),
            );
            <__B as Renamed>::set_name(self.inner_mut(), name)
        }
        #[inline]
        async fn draft(&self) -> crate::facade::Result<Self::Draft> {
            let call = __DraftCall {};
            let (layer, inner) = (self.layer(), self.inner());
            ::core::result::Result::Ok(
                Wrapper::new(
                    ::core::clone::Clone::clone(layer),
                    crate::facade::layer::Layer::around(layer, inner, call).await?,
                ),
            )
        }
        #[inline]
        async fn put(
            &self,
            items: &[B],
            layer: L,
        ) -> crate::facade::Result<BatchReport> {
            let call = __PutCall { items, layer };
            let (layer, inner) = (self.layer(), self.inner());
            crate::facade::layer::Layer::around(layer, inner, call).await
        }
        fn list(&self) -> impl Stream<Item = Result<u8>> + Send {
            let items = <__B as Renamed>::list(self.inner());
            crate::facade::layer::Layer::around_stream(
                self.layer(),
                crate::facade::layer::Operation::new(
                    "list",
                    crate::facade::layer::OperationKind::Read,
                ),
                items,
            )
        }
    }
    #[deny(clippy::missing_trait_methods)]
    impl<__A: Renamed, __B: Renamed> Renamed for crate::facade::Either<__A, __B>
    where
        Self: Backend,
    {
        type Draft = crate::facade::Either<
            <__A as Renamed>::Draft,
            <__B as Renamed>::Draft,
        >;
        #[inline]
        fn set_name(&mut self, name: String) {
            match self {
                crate::facade::Either::Left(__on) => {
                    <__A as Renamed>::set_name(__on, name)
                }
                crate::facade::Either::Right(__on) => {
                    <__B as Renamed>::set_name(__on, name)
                }
            }
        }
        #[inline]
        fn draft(&self) -> impl Future<Output = Result<Self::Draft>> + Send {
            match self {
                crate::facade::Either::Left(__on) => {
                    crate::facade::either::Run::Left(
                        crate::facade::either::map_ok(
                            <__A as Renamed>::draft(__on),
                            crate::facade::Either::Left,
                        ),
                    )
                }
                crate::facade::Either::Right(__on) => {
                    crate::facade::either::Run::Right(
                        crate::facade::either::map_ok(
                            <__B as Renamed>::draft(__on),
                            crate::facade::Either::Right,
                        ),
                    )
                }
            }
        }
        #[inline]
        fn put(
            &self,
            items: &[B],
            layer: L,
        ) -> impl Future<Output = Result<BatchReport>> + Send {
            match self {
                crate::facade::Either::Left(__on) => {
                    crate::facade::either::Run::Left(
                        <__A as Renamed>::put(__on, items, layer),
                    )
                }
                crate::facade::Either::Right(__on) => {
                    crate::facade::either::Run::Right(
                        <__B as Renamed>::put(__on, items, layer),
                    )
                }
            }
        }
        #[inline]
        fn list(&self) -> impl Stream<Item = Result<u8>> + Send {
            match self {
                crate::facade::Either::Left(__on) => {
                    crate::facade::either::Run::Left(<__A as Renamed>::list(__on))
                }
                crate::facade::Either::Right(__on) => {
                    crate::facade::either::Run::Right(<__B as Renamed>::list(__on))
                }
            }
        }
    }
};
